"""Ctrl-C and SIGTERM are never lost: what was asked is remembered, also where code of others swallows the exception.

An exception that a signal handler raises disappears in a garbage collection or a callback, and becomes another one in some
libraries. So the handler also notes the signal, stages and every written file ask `check`, and the command line asks `received`.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_received: list[int] = []
_shields = 0
"""Blocks of `shielded` that the main thread is in."""


@contextmanager
def noted_signals() -> Iterator[None]:
    """Note SIGINT and SIGTERM within the block, and raise `KeyboardInterrupt` for each. What was noted is forgotten at its end: a later
    call in the same process, from a notebook or a test, was not interrupted.

    In threads nothing is changed. A rank that a launcher started, and a forked one, ends at SIGTERM at once: it may wait in a collective,
    where Python is never asked.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _received.clear()
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    known = {number: signal.getsignal(number) for number in (signal.SIGINT, *((signal.SIGTERM,) if alone else ()))}
    for number, handler in known.items():
        if handler is not signal.SIG_IGN:  # `nohup` and background jobs of a shell
            signal.signal(number, _note)
    told, sys.unraisablehook = sys.unraisablehook, _unraisable(sys.unraisablehook)
    try:
        yield
    finally:
        sys.unraisablehook = told
        for number, handler in known.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        _received.clear()


def received() -> int | None:
    """The first signal that came within the block of `noted_signals` that runs; None: none, or no block runs."""
    return _received[0] if _received else None


def check() -> None:
    """Raise `KeyboardInterrupt` if a signal came, wherever its own exception went."""
    if _received:
        raise KeyboardInterrupt


@contextmanager
def shielded() -> Iterator[None]:
    """Note signals within the block, but raise nothing: for what must be done whole, as clearing up. The caller, or who asks `check`
    next, learns of them."""
    global _shields
    _shields += 1
    try:
        yield
    finally:
        _shields -= 1


@contextmanager
def unswallowed() -> Iterator[None]:
    """Raise `KeyboardInterrupt` where Lightning makes an exit of it, which leaves SIGINT ignored."""
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, on_interrupt)
        raise KeyboardInterrupt from error


def _unraisable(told: Callable[[sys.UnraisableHookArgs], object]) -> Callable[[sys.UnraisableHookArgs], object]:
    """Say nothing of an interrupt that Python had to ignore: it is noted."""
    return lambda raised: None if _received and issubclass(raised.exc_type, KeyboardInterrupt) else told(raised)


def _note(number: int, frame: FrameType | None) -> None:
    _received.append(number)
    if not _shields:
        raise KeyboardInterrupt


def _as_before() -> None:
    _received.clear()
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(number) is _note:
            signal.signal(number, handler)


os.register_at_fork(after_in_child=_as_before)
