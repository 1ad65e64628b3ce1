"""Freed heap memory leaves the process."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from fairprune_framework.utilities.freed_memory import give_back


def resident() -> int:
    """Bytes, of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps what was freed")
def test_what_was_freed_is_given_back() -> None:
    give_back()
    blocks = [bytearray(64 * 1024) for _ in range(3000)]  # below the size that is mapped, and so returned, block by block
    last = blocks.pop()  # on top of the heap: what lies below it stays
    full = resident()
    del blocks
    give_back()
    assert full - resident() > 100 * 2**20
    assert len(last) == 64 * 1024


def test_it_may_be_asked_at_any_time() -> None:
    give_back()
    give_back()
