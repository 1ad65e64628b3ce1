"""Parts of several ranks into one, over gloo, against exact rational arithmetic."""

from __future__ import annotations

import multiprocessing
import random
import socket
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from fairprune_framework.auditing.distributed.checkpoint import Part
from fairprune_framework.auditing.distributed.completed import CompletedBatches
from fairprune_framework.auditing.distributed.reduce import gather_columns, reduce_parts
from fairprune_framework.auditing.micro_batch import BatchId
from fairprune_framework.errors import FairpruneError
from fairprune_framework.functional.compensated import add_value

KEY, ONLY = "contrasts/s/x.y", "contrasts/s/only.y"
LIMIT = 120.0


def terms(rank: int) -> list[float]:
    chance = random.Random(rank)
    return [chance.uniform(0.5, 1) * 2.0 ** chance.randint(-30, 30) for _ in range(20)]


def part(rank: int) -> Part:
    """Sums of a rank's terms; one rank alone knows a second statistic."""
    words = torch.zeros(2, 1, 1, 2, dtype=torch.float64)
    for term in terms(rank):
        words = add_value(words, torch.full((1, 1, 2), term, dtype=torch.float64))
    done = CompletedBatches()
    done.add(BatchId(0, 0, rank, 9, rank + 1), 2, 10)
    found = Part(words={KEY: words}, counts={"contrasts": [rank + 1]}, done=done, splits=rank)
    if rank == 1:
        found.words[ONLY] = words.clone()
    return found


def reduced(group: Any, rank: int, world: int) -> Any:
    found = reduce_parts(part(rank), group)
    return None if found is None else (found.words, found.counts, found.done.to_json(), found.splits)


def gathered(group: Any, rank: int, world: int) -> Any:
    whole = torch.arange(24.0, dtype=torch.float64).reshape(2, 1, 1, 12)
    mine = Part(words={KEY: whole.chunk(world, -1)[rank], ONLY: whole}, counts={}, done=CompletedBatches())
    found = gather_columns(mine, {KEY: 12}, rank, world, group)
    return None if found is None else found.words


def work(what: Any, rank: int, world: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    try:
        torch.save(what(torch.distributed.group.WORLD, rank, world), Path(folder) / f"{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


def together(what: Any, world: int, folder: Path) -> list[Any]:
    """What each rank returns."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = int(found.getsockname()[1])
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=work, args=(what, rank, world, port, str(folder))) for rank in range(world)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(LIMIT)
        assert process.exitcode == 0
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_the_sum_is_exact_whatever_the_number_of_ranks(world: int, tmp_path: Path) -> None:
    first, *others = together(reduced, world, tmp_path)
    assert others == [None] * (world - 1)
    words, counts, done, splits = first
    exact = sum((Fraction(term) for rank in range(world) for term in terms(rank)), Fraction(0))
    total = Fraction(words[KEY][0, 0, 0, 0].item()) + Fraction(words[KEY][1, 0, 0, 0].item())
    assert abs(total - exact) <= exact * Fraction(2) ** -98
    assert (ONLY in words) is (world > 1)
    assert counts == {"contrasts": [sum(range(1, world + 1))]}
    assert (done["contrasts"], done["tokens"]) == (2 * world, 10 * world)
    assert splits == sum(range(world))


@pytest.mark.parametrize("world", [2, 3])
def test_columns_of_ranks_stand_side_by_side(world: int, tmp_path: Path) -> None:
    first, *others = together(gathered, world, tmp_path)
    assert others == [None] * (world - 1)
    whole = torch.arange(24.0, dtype=torch.float64).reshape(2, 1, 1, 12)
    assert first[KEY].equal(whole)
    assert first[ONLY].equal(whole)


def test_columns_that_are_not_the_whole_site() -> None:
    alone = Part(words={KEY: torch.zeros(2, 1, 1, 5, dtype=torch.float64)}, counts={}, done=CompletedBatches())
    assert gather_columns(alone, {KEY: 5}, 0, 1, None) is alone
    with pytest.raises(FairpruneError, match="2 ranks with 5 columns each cannot be the 12 of the site"):
        gather_columns(alone, {KEY: 12}, 0, 2, None)
