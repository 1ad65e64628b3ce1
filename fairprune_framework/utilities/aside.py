"""Keeps what foreign code prints out of answers."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, redirect_stdout
from typing import Any


def prints_aside() -> AbstractContextManager[Any]:
    """What is printed inside goes to stderr: what a plugin prints is no part of an answer on stdout, such as `--json`."""
    return redirect_stdout(sys.stderr)
