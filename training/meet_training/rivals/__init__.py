"""MEET beside what one would do otherwise: every rival trained on one budget and measured alike."""
