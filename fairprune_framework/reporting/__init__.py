"""What people look at: the page of a run, figures, the summary in the terminal. Reads files, never a model."""
