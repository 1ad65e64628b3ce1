"""stdout and stderr as a command needs them: there, able to show any name, and no reason to end work of hours."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO, cast


class Lasting:
    """A stream to which writing always succeeds: what cannot be shown any more, on a full disk or a terminal that is gone, is lost."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """As of the stream."""
        try:
            return self._stream.write(text)
        except (OSError, ValueError):  # full, gone, or closed
            return len(text)

    def flush(self) -> None:
        """As of the stream."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            return


@contextmanager
def ready() -> Iterator[None]:
    """Inside, stderr takes whatever is written to it, and a stream that was closed when the process began is an empty one: no file that
    is opened becomes stdout, and no error goes to the other stream."""
    if None in (sys.__stdin__, sys.__stdout__, sys.__stderr__):
        _fill()
    out, err = (open(os.devnull, "w", encoding="utf-8") if one is None else one for one in (sys.stdout, sys.stderr))  # noqa: SIM115
    if isinstance(out, io.TextIOWrapper):  # names and texts go to any terminal, as they go to stderr
        out.reconfigure(errors="backslashreplace")
    with redirect_stdout(out), redirect_stderr(cast(TextIO, Lasting(err))):
        yield


def _fill() -> None:
    """Open what is closed of the first three file descriptors, for programs that are started too."""
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(number, True)
    os.close(number)
