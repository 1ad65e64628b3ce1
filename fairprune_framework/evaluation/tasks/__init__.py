"""Benchmark tasks: those of lm-eval, and our own."""
