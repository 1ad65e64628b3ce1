"""The command line, `fairprune`."""

from fairprune_framework.cli.main import main

__all__ = ["main"]
