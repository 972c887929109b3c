"""Where the words stand in a request, and the routes of our own. Knows the rooms below, never vLLM's symbols."""
