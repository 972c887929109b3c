"""MEET's training: data -> stage 1 -> stage 2 -> evaluation -> bundle. Importing it loads no torch."""
