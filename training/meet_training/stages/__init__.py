"""The two stages of MEET and the one loop that optimises both."""
