"""Does a control hold? Measures replies and reports figures. Asks any OpenAI-compatible endpoint."""
