"""Calls into foreign code: what it prints stays out of answers, and what it raises becomes one error that names it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from typing import Any, TextIO

from fairprune_framework.errors import BrokenPlugin, FairpruneError, raised

_answers: list[TextIO] = []
"""Where answers go while a command works; empty: to stdout."""


def prints_aside() -> AbstractContextManager[Any]:
    """What is printed inside goes to stderr: what a plugin prints is no part of an answer on stdout, such as `--json`."""
    return redirect_stdout(sys.stderr)


@contextmanager
def answers_alone() -> Iterator[None]:
    """While a command works: `answer` alone writes to stdout. What others print goes to stderr, that of C libraries and of programs
    that they start too."""
    out = sys.stdout
    kept = _moved(out)
    _answers.append(out if kept is None else os.fdopen(kept, "w", encoding=out.encoding, errors=out.errors))
    try:
        with prints_aside():
            yield
    finally:
        own = _answers.pop()
        if kept is not None:
            _moved_back(own)


def answer(text: str, end: str = "\n") -> None:
    """Print what a command was asked for, at once; to stdout, whatever was redirected within `answers_alone`.

    Raises:
        FairpruneError: stdout cannot be written, since its disk is full. BrokenPipeError: nobody reads it any more.
    """
    try:
        print(text, end=end, file=_answers[-1] if _answers else sys.stdout, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise FairpruneError(f"what the command found cannot be written to stdout: {error.strerror}") from error


@contextmanager
def plugin_call(what: str, passing: tuple[type[BaseException], ...] = ()) -> Iterator[None]:
    """One call into a plugin.

    Args:
        what: is called, at the beginning of a message.
        passing: what the caller knows to deal with.

    Raises:
        BrokenPlugin: for whatever the plugin raised, an end of the interpreter too; the cause is chained. An interrupt stays one.
    """
    try:
        with prints_aside():
            yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if isinstance(error, passing):
            raise
        raise BrokenPlugin(f"{what} raised {raised(error)}") from error


def _moved(out: TextIO) -> int | None:
    """Let the file descriptor of stdout lead to stderr; returns where it led, or None where stdout is no file of the process."""
    if out is not sys.__stdout__:
        return None
    try:
        out.flush()
        behind = sys.stderr.fileno()
        kept = os.dup(out.fileno())
        os.dup2(behind, out.fileno())
    except (OSError, ValueError, AttributeError):  # closed, or none at all
        return None
    return kept


def _moved_back(own: TextIO) -> None:
    out = sys.__stdout__
    assert out is not None
    try:
        with contextlib.suppress(OSError, ValueError):
            out.flush()
        os.dup2(own.fileno(), out.fileno())
    finally:
        own.close()
