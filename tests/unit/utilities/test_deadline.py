"""Code that goes on for ever is stopped; what was tracing before goes on to trace."""

from __future__ import annotations

import sys
import time

import pytest

from fairprune_framework.utilities.deadline import within


def for_ever() -> None:
    while True:
        pass


def test_what_goes_on_for_ever_is_stopped() -> None:
    before, began = sys.gettrace(), time.monotonic()
    with pytest.raises(TimeoutError, match=r"not done after 0\.05 s"), within(0.05):
        for_ever()
    assert time.monotonic() - began < 5
    assert sys.gettrace() is before


def test_what_is_quick_is_left_alone() -> None:
    with within(60):
        assert sorted(str(number) for number in range(3)) == ["0", "1", "2"]
