"""From files to batches of token ids. Knows nothing of controls, losses or the engine."""
