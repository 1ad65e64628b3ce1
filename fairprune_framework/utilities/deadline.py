"""A limit of time for Python code that somebody else wrote, such as a template."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise `TimeoutError` where what the block calls is not done after so many seconds.

    The clock is looked at before each line, in any thread; one call into C code is not cut short. The block's own lines are not looked at.
    """
    until = time.monotonic() + seconds

    def look(_frame: FrameType, _event: str, _value: Any) -> Any:
        if time.monotonic() > until:
            raise TimeoutError(f"not done after {seconds:g} s")
        return look

    before = sys.gettrace()
    sys.settrace(look)
    try:
        yield
    finally:
        sys.settrace(before)
