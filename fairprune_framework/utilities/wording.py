"""Numbers in sentences."""

from __future__ import annotations


def number_of(count: int, noun: str) -> str:
    """A count with its noun, in the plural unless there is one.

    >>> number_of(1, "neuron"), number_of(1200, "neuron")
    ('1 neuron', '1,200 neurons')
    """
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
