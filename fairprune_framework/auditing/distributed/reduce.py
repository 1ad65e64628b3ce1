"""Reduction of partial sums over ranks, as double-doubles: a binary tree, one tensor at a time, TwoSum at each step.

A SUM all-reduce would add the two words separately and differ in the last bit; an all-gather would hold world-size copies.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from fairprune_framework.auditing.distributed.checkpoint import Part
from fairprune_framework.auditing.reductions import merged
from fairprune_framework.errors import FairpruneError


def reduce_parts(part: Part, group: Any) -> Part | None:
    """Add up the parts of all ranks; None on every rank but 0. Sums on the CPU, over a gloo group.

    Raises:
        RuntimeError: a rank has exited.
    """
    rank, world, distance = dist.get_rank(group), dist.get_world_size(group), 1
    while distance < world:
        if rank % (2 * distance):
            _send(part, rank - distance, group)
            return None
        if rank + distance < world:
            _receive(part, rank + distance, group)
        distance *= 2
    return part


def _send(part: Part, to: int, group: Any) -> None:
    keys = [(key, tuple(part.words[key].shape)) for key in sorted(part.words)]
    dist.send_object_list([keys, Part(counts=part.counts, done=part.done, splits=part.splits)], to, group=group, device=_CPU)
    for key, _ in keys:
        dist.send(part.words[key].contiguous(), to, group=group)


def _receive(part: Part, source: int, group: Any) -> None:
    received: list[Any] = [None, None]
    dist.recv_object_list(received, source, group=group, device=_CPU)
    keys, rest = received
    part.add(rest)
    for key, shape in keys:
        words = torch.empty(shape, dtype=torch.float64)
        dist.recv(words, source, group=group)
        part.words[key] = merged(key, torch.stack([part.words[key], words])) if key in part.words else words


def gather_columns(part: Part, units: dict[str, int], rank: int, world: int, group: Any) -> Part | None:
    """Concatenate the columns of tensor-parallel ranks; None on every rank but 0. All ranks saw the same contrasts.

    Args:
        units: key -> columns of the whole site, of the sums that ranks hold slices of; the others are equal on all ranks.
    """
    if world == 1:
        return part
    for key in sorted(part.words):
        if key not in units:
            continue
        mine = part.words[key].contiguous()
        if mine.shape[-1] * world != units[key]:
            raise FairpruneError(
                f"{key}: {world} ranks with {mine.shape[-1]} columns each cannot be the {units[key]} of the site"
            )
        columns: list[Tensor] | None = [torch.empty_like(mine) for _ in range(world)] if rank == 0 else None
        dist.gather(mine, columns, dst=0, group=group)
        if columns is not None:
            part.words[key] = torch.cat(columns, -1)
    return part if rank == 0 else None


_CPU = torch.device("cpu")
