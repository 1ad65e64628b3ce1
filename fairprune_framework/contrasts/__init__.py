"""Prompt sets: what they are made of, where they are read from, how their variants line up under a tokenizer."""
