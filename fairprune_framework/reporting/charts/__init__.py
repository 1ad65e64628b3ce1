"""What is drawn: each chart once, as plain data in plotly's words, with the table behind it."""
