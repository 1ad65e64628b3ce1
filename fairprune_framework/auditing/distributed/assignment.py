"""Which rank computes which micro-batch: pure functions of the composition, which never depends on them.

Micro-batches are composed window by window and hashed before any is assigned. Each is named by (pass, window, number), so that
another set of ranks can resume.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from fairprune_framework.api.interfaces import Pass
from fairprune_framework.auditing.batches import batch_specs
from fairprune_framework.auditing.distributed.completed import CompletedBatches
from fairprune_framework.auditing.micro_batch import BatchId, MicroBatch
from fairprune_framework.auditing.streams import Windows

SHARED_ROUNDS = 4
"""Windows per rank that are assigned micro-batch by micro-batch at the end; whole windows go to one rank before."""


def balance(costs: Sequence[int], loads: list[int]) -> list[int]:
    """Assign costs, the largest first, each to the rank with the least so far; `loads` are added to. Deterministic.

    >>> balance([5, 4, 3, 3], [0, 0])
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
    """Windows that one rank computes whole, so that not every rank tokenizes every window: window -> rank."""
    rounds = max(0, len(windows) // world - SHARED_ROUNDS)
    return {window: turn % world for turn, window in enumerate(windows[: rounds * world])} if world > 1 else {}


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
    """The remaining micro-batches of one rank, in order.

    Args:
        together: every rank yields equally many, some of them idle: ranks of a sharded model compute in lockstep.
    """
    loads = [0] * world
    for each in work:
        left = [window for window in range(each.count) if not done.is_complete(each.number, window)]
        owner = {} if together else whole_windows(left, world)
        mine = {window for window in left if owner.get(window, rank) == rank}
        for window, contrasts in each.windows(mine.__contains__):
            specs = list(batch_specs(contrasts, each.max_tokens, each.pass_, each.share_up_to))
            todo = [i for i in range(len(specs)) if (each.number, window, i) not in done]
            if window in owner:
                chosen = todo
            else:
                ranks = balance([specs[i].tokens for i in todo], loads)
                chosen = [i for i, who in zip(todo, ranks, strict=True) if who == rank]
                most = max((ranks.count(who) for who in range(world)), default=0)
            for i in chosen:
                batch_id = BatchId(each.number, window, i, len(specs), specs[i].content)
                yield specs[i].micro_batch(each.values, each.pad, batch_id)
            if together and len(chosen) < most:
                idle = min(todo, key=lambda i: specs[i].tokens)
                for _ in range(most - len(chosen)):
                    yield replace(specs[idle].micro_batch(each.values, each.pad), idle=True)
