"""Many sums in one memory, so that a few operations add what a micro-batch summed up to: on a CPU, where each call costs as much as a
thousand numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fairprune_framework.functional.compensated import add_in_place

TOGETHER = 2**18
"""Bytes of what a micro-batch adds that are added together on a CPU: the five tensors that take part stay in a processor's cache."""


class Rows(NamedTuple):
    """Which rows of each group a micro-batch adds to: of `of`, the rows `places` of all groups one after the other."""

    places: Sequence[int]
    of: int


class Block:
    """Sums of equally many columns in one memory on a CPU, so that a few operations add to many of them."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Args: shapes: key -> (G, R, K) of its sum."""
        self.offsets: dict[str, int] = {}
        total = 0
        for key, shape in shapes.items():
            self.offsets[key] = total
            total += shape[0] * shape[1]
        columns = next(iter(shapes.values()))[2]
        self.words_2RK = torch.from_numpy(
            np.zeros((2, total, columns))
        )  # rows that nothing is added to take no memory, unlike torch's
        self.views = {
            key: self.words_2RK[:, self.offsets[key] : self.offsets[key] + shape[0] * shape[1]].view(2, *shape)
            for key, shape in shapes.items()
        }
        """key -> (2, G, R, K)."""

    def add(self, values: Sequence[Tensor], places_P: Tensor) -> None:
        """Add rows, (.., K) each, to those at `places_P` of them all."""
        columns = self.words_2RK.shape[2]
        most = max(1, TOGETHER // (8 * columns))
        begin, size = 0, 0
        rooms: Sequence[Tensor] = ()
        for parts in _portions(values, most):
            count = sum(part.shape[0] for part in parts)
            place = places_P[begin : begin + count]
            begin += count
            if count != size:
                size, rooms = count, torch.empty(5, count, columns, dtype=torch.float64).unbind()
            high, low, value, room, further = rooms
            torch.cat(parts, out=value)
            torch.index_select(self.words_2RK[0], 0, place, out=high)
            torch.index_select(self.words_2RK[1], 0, place, out=low)
            high, low = add_in_place(high, low, value, room, further)
            self.words_2RK[0].index_copy_(0, place, high)
            self.words_2RK[1].index_copy_(0, place, low)


def _portions(values: Sequence[Tensor], most: int) -> Iterator[list[Tensor]]:
    """Rows of several tensors, at most so many at a time."""
    parts: list[Tensor] = []
    taken = 0
    for value in values:
        begin, rows = 0, value.shape[0]
        while begin < rows:
            count = min(rows - begin, most - taken)
            parts.append(value if count == rows else value[begin : begin + count])
            begin, taken = begin + count, taken + count
            if taken == most:
                yield parts
                parts, taken = [], 0
    if parts:
        yield parts
