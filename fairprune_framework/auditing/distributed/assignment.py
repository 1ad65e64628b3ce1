"""Who computes which micro-batch, and what is done already: pure functions of the composition, never the other way round.

Micro-batches are composed window by window and hashed before any is assigned. Each is named by (pass, window, number), so that
what one set of ranks has done can be taken on by another set.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fairprune_framework.api.interfaces import Pass
from fairprune_framework.auditing.batches import BatchId, MicroBatch, batch_specs, hashed_sum
from fairprune_framework.contrasts.alignment import AlignedContrast
from fairprune_framework.errors import FairpruneError

SHARED_ROUNDS = 4
"""Windows per rank that are assigned micro-batch by micro-batch at the end; whole windows go to one rank before."""


@dataclass
class CompletedBatches:
    """Which micro-batches are in a sum: one bit each."""

    bits: dict[tuple[int, int], int] = field(default_factory=dict)
    """(pass, window) -> bit mask over its micro-batches."""
    counts: dict[tuple[int, int], int] = field(default_factory=dict)
    """(pass, window) -> how many micro-batches it has."""
    contents: int = 0
    """Sum of `BatchSpec.content`, modulo 2^256."""
    contrasts: int = 0
    """Contrasts (or documents) of all of them, over all passes."""
    tokens: int = 0

    def add(self, batch_id: BatchId, contrasts: int, tokens: int) -> None:
        """One more micro-batch; raises `FairpruneError` where it is there already."""
        where, bit = (batch_id.pass_, batch_id.window), 1 << batch_id.number
        if self.bits.get(where, 0) & bit:
            raise FairpruneError(f"micro-batch {tuple(batch_id[:3])} came twice")
        self.bits[where] = self.bits.get(where, 0) | bit
        self.counts[where] = batch_id.total
        self.contents = (self.contents + batch_id.content) % 2**256
        self.contrasts += contrasts
        self.tokens += tokens

    def __contains__(self, batch_id: tuple[int, int, int]) -> bool:
        return bool(self.bits.get(batch_id[:2], 0) >> batch_id[2] & 1)

    def whole(self, pass_: int, window: int) -> bool:
        """All micro-batches of a window are done."""
        return (pass_, window) in self.counts and self.bits[pass_, window] == (1 << self.counts[pass_, window]) - 1

    def meets(self, other: CompletedBatches) -> bool:
        """Some micro-batch is in both."""
        return any(self.bits.get(where, 0) & bits for where, bits in other.bits.items())

    def joined(self, other: CompletedBatches) -> CompletedBatches:
        """Both together; raises `FairpruneError` where they meet."""
        if self.meets(other):
            raise FairpruneError("two partial sums hold the same micro-batch")
        bits = dict(self.bits)
        for where, more in other.bits.items():
            bits[where] = bits.get(where, 0) | more
        return CompletedBatches(
            bits=bits,
            counts={**self.counts, **other.counts},
            contents=(self.contents + other.contents) % 2**256,
            contrasts=self.contrasts + other.contrasts,
            tokens=self.tokens + other.tokens,
        )

    def copy(self) -> CompletedBatches:
        """A copy that may be added to."""
        return self.joined(CompletedBatches())

    @property
    def composition(self) -> str:
        """As `composition_hash` of the micro-batches."""
        return hashed_sum(self.contents)

    def to_json(self) -> dict[str, object]:
        """As JSON values."""
        windows = [[*where, f"{bits:x}", self.counts[where]] for where, bits in sorted(self.bits.items())]
        return {
            "windows": windows,
            "contents": hashed_sum(self.contents),
            "contrasts": self.contrasts,
            "tokens": self.tokens,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> CompletedBatches:
        """Read `to_json`."""
        windows: list[tuple[int, int, str, int]] = [tuple(row) for row in data["windows"]]  # type: ignore[attr-defined]
        return cls(
            bits={(pass_, window): int(bits, 16) for pass_, window, bits, _ in windows},
            counts={(pass_, window): count for pass_, window, _, count in windows},
            contents=int(str(data["contents"]), 16),
            contrasts=int(str(data["contrasts"])),
            tokens=int(str(data["tokens"])),
        )


def balance(costs: Sequence[int], loads: list[int]) -> list[int]:
    """Assign costs, the largest first, each to the rank with the least so far; `loads` are added to. Deterministic.

    >>> shares([5, 4, 3, 3], [0, 0])
    [0, 1, 1, 0]

    Returns: the rank of each.
    """
    heap = [(load, rank) for rank, load in enumerate(loads)]
    heapq.heapify(heap)
    owner = [0] * len(costs)
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        load, rank = heapq.heappop(heap)
        owner[index], loads[rank] = rank, load + costs[index]
        heapq.heappush(heap, (loads[rank], rank))
    return owner


def whole_windows(windows: Sequence[int], world: int) -> dict[int, int]:
    """Windows that one rank takes whole, so that not every rank has to tokenise every window: window -> rank."""
    rounds = max(0, len(windows) // world - SHARED_ROUNDS)
    return {window: turn % world for turn, window in enumerate(windows[: rounds * world])} if world > 1 else {}


Windows = Callable[[Callable[[int], bool]], Iterator[tuple[int, list[AlignedContrast]]]]
"""Gives the wanted windows of a stream in order: called with a test of the window's number, yields (number, contrasts)."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """The micro-batches of one pass, ready to be assigned."""

    pass_: Pass
    number: int
    windows: Windows
    count: int
    """How many windows there are."""
    values: int
    max_tokens: int
    share_up_to: int = 0
    pad: int = 0


def assigned_batches(
    work: Sequence[Work], rank: int, world: int, done: CompletedBatches, together: bool = False
) -> Iterator[MicroBatch]:
    """The micro-batches of one rank that are not done yet, in order.

    Args:
        together: every rank yields equally often, idle ones where it has nothing left: sharded models compute in lockstep.
    """
    loads = [0] * world
    for each in work:
        left = [window for window in range(each.count) if not done.whole(each.number, window)]
        owner = {} if together else whole_windows(left, world)
        mine = {window for window in left if owner.get(window, rank) == rank}
        for window, contrasts in each.windows(mine.__contains__):
            found = list(batch_specs(contrasts, each.max_tokens, each.pass_, each.share_up_to))
            todo = [i for i in range(len(found)) if (each.number, window, i) not in done]
            if window in owner:
                chosen = todo
            else:
                ranks = balance([found[i].tokens for i in todo], loads)
                chosen = [i for i, who in zip(todo, ranks, strict=True) if who == rank]
                most = max((ranks.count(who) for who in range(world)), default=0)
            for i in chosen:
                batch_id = BatchId(each.number, window, i, len(found), found[i].content)
                yield found[i].micro_batch(each.values, each.pad, batch_id)
            if together and len(chosen) < most:
                idle = min(todo, key=lambda i: found[i].tokens)
                for _ in range(most - len(chosen)):
                    yield replace(found[idle].micro_batch(each.values, each.pad), idle=True)
