"""Memory that was freed goes back to the system: what one stage is done with is no floor of the next one's peak."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache


def give_back() -> None:
    """Ask the C library for it. glibc keeps freed heap memory for later, a hundred megabytes after an audit; others need not be asked."""
    if (trim := _trim()) is not None:
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    """`malloc_trim` of glibc (malloc_trim(3)); None elsewhere."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # no such function; on Windows no library without a name
        return None
