"""A small local page: type a pair of prompts, see what the original and the pruned model make of it."""
