"""Numbers in sentences."""

from __future__ import annotations


def number_of(count: int, noun: str) -> str:
    """A count with its noun, in the plural unless there is one.

    >>> number_of(1, "neuron"), number_of(1200, "neuron")
    ('1 neuron', '1,200 neurons')
    """
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def in_time(seconds: float) -> str:
    """A duration for people.

    >>> in_time(75), in_time(8000), in_time(4)
    ('1 min 15 s', '2 h 13 min', '4 s')
    """
    if seconds != seconds:
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
