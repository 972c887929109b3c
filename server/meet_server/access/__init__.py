"""Who may ask, for how much at once, and whose turn it is. Knows no HTTP, no engine and no words.

keyring      keys by their digests, from a file and the environment, read anew when the file changes
fair_queue   turns: a bounded number run, a bounded number wait, and nobody's flood keeps others out
"""
