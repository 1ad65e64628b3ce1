"""The recipe: every option of a run, and how layers of it are read."""
