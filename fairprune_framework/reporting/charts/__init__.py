"""The charts, each once, as plain data in plotly's vocabulary, with its table."""
