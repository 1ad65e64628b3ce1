"""A small local page: the original and the pruned model on a pair of prompts."""
