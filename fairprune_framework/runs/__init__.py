"""A run: its folder and what it has loaded."""
