"""Dealing micro-batches: nothing twice, nothing lost, balanced, whatever was done before; and partial sums that add up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairprune_framework.api.interfaces import Pass
from fairprune_framework.auditing import batches
from fairprune_framework.auditing.batches import composition_hash
from fairprune_framework.auditing.distributed import assignment as sharding
from fairprune_framework.auditing.distributed.assignment import Work, assigned_batches, balance, whole_windows
from fairprune_framework.auditing.distributed.checkpoint import Checkpoint, Part
from fairprune_framework.auditing.distributed.completed import CompletedBatches
from fairprune_framework.auditing.micro_batch import BatchId
from fairprune_framework.auditing.sums import StatisticSums, finished, resampled
from fairprune_framework.contrasts.alignment import AlignedContrast, Tokens
from fairprune_framework.errors import FairpruneError, RunFolderError


def contrast(i: int) -> AlignedContrast:
    length = 3 + i * 7 % 11
    variants = tuple(Tokens(ids=(v, i, *range(length)), start=0, end=1) for v in (1, 2))
    return AlignedContrast(
        id=f"c{i}", category="a", template_id=f"t{i}", control=False, split=None, variants=variants, attributes=(0, 1)
    )


def work(count: int, window: int, steps: int = 1) -> list[Work]:
    contrasts = [contrast(i) for i in range(count)]

    def windows(wanted: Callable[[int], bool]) -> Iterator[tuple[int, list[AlignedContrast]]]:
        for number, first in enumerate(range(0, count, window)):
            if wanted(number):
                yield number, contrasts[first : first + window]

    total = -(-count // window)
    return [
        Work(pass_=Pass(scale=1.0 + n), number=n, windows=windows, count=total, values=2, max_tokens=60) for n in range(steps)
    ]


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 5), st.integers(1, 2), st.integers(0, 30))
@settings(max_examples=60, deadline=None)
def test_everything_once_and_resumed_on_another_world(count: int, window: int, world: int, steps: int, cut: int) -> None:
    todo = work(count, window, steps)
    everything = list(assigned_batches(todo, 0, 1, CompletedBatches()))
    batch_ids = {batch.batch_id[:3] for batch in everything if batch.batch_id}
    assert len(batch_ids) == len(everything)
    before = CompletedBatches()
    for batch in [b for rank in range(world) for b in list(assigned_batches(todo, rank, world, CompletedBatches()))[:cut]]:
        assert batch.batch_id is not None
        before.add(batch.batch_id, len(batch.ids), batch.tokens)
    again = CompletedBatches.from_json(before.to_json())
    assert again == before
    after = before.copy()
    for rank in range(world + 1):
        for batch in assigned_batches(todo, rank, world + 1, before):
            assert batch.batch_id is not None
            after.add(batch.batch_id, len(batch.ids), batch.tokens)  # raises where one comes twice
    assert {(pass_, w, i) for (pass_, w), bits in after.bits.items() for i in range(99) if bits >> i & 1} == batch_ids
    assert after.contrasts == count * steps
    assert after.composition == composition_hash(everything)
    assert all(after.whole(each.number, w) for each in todo for w in range(each.count))


def test_in_lockstep_every_rank_computes_equally_often() -> None:
    todo = work(13, 5)
    found = [list(assigned_batches(todo, rank, 3, CompletedBatches(), together=True)) for rank in range(3)]
    assert len({len(mine) for mine in found}) == 1
    assert sum(not batch.idle for mine in found for batch in mine) == len(
        list(assigned_batches(todo, 0, 1, CompletedBatches()))
    )


@given(st.lists(st.integers(1, 512), min_size=30, max_size=200), st.integers(2, 8))
@settings(max_examples=50, deadline=None)
def test_costs_are_balanced(costs: list[int], world: int) -> None:
    loads = [0] * world
    owner = balance(costs, loads)
    assert loads == [sum(cost for cost, who in zip(costs, owner, strict=True) if who == rank) for rank in range(world)]
    assert max(loads) - min(loads) <= max(costs)


def test_whole_windows_leave_enough_to_even_out() -> None:
    found = whole_windows(range(100), 8)
    assert len(found) == (100 // 8 - sharding.SHARED_ROUNDS) * 8
    assert [list(found.values()).count(rank) for rank in range(8)] == [8] * 8
    assert whole_windows(range(100), 1) == {}


def test_a_micro_batch_that_comes_twice_is_an_error() -> None:
    done = CompletedBatches()
    done.add(BatchId(0, 0, 3, 5, 17), 2, 10)
    with pytest.raises(FairpruneError, match="twice"):
        done.add(BatchId(0, 0, 3, 5, 17), 2, 10)
    with pytest.raises(FairpruneError, match="same micro-batch"):
        done.joined(done.copy())


# -- checkpoints -----------------------------------------------------------------------------------------------------------


def part(number: int, value: float) -> Part:
    done = CompletedBatches()
    done.add(BatchId(0, 0, number, 9, number + 1), 1, 1)
    words = {"contrasts/site/x.y": torch.tensor([value, 0.0], dtype=torch.float64).reshape(2, 1, 1, 1)}
    return Part(words=words, counts={"contrasts": [1]}, done=done)


def test_sessions_add_up_and_a_damaged_base_falls_back(tmp_path: Path) -> None:
    heard: list[str] = []
    for session in range(3):
        checkpoint = Checkpoint(tmp_path, {"model": "m"}, heard.append)
        before = checkpoint.load()
        assert len(before.done.bits and bin(before.done.bits[0, 0]).strip("0b")) == session
        checkpoint.begin(before)
        assert checkpoint.session == session
        checkpoint.keep(part(session, 10.0**session), rank=session)
    assert not heard
    base = max(tmp_path.glob("base-*"))
    base.write_bytes(base.read_bytes()[:-1])
    found = Checkpoint(tmp_path, {"model": "m"}, heard.append).load()
    assert found.words["contrasts/site/x.y"].flatten().tolist() == [111.0, 0.0]
    assert found.counts == {"contrasts": [3]}
    assert base.name in heard[0]


def test_another_binding_is_refused_by_name(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, {"model": "abc", "code version": "1"})
    checkpoint.begin(checkpoint.load())
    checkpoint.keep(part(0, 1.0), rank=0)
    with pytest.raises(RunFolderError, match=r"another model \(abc, now abd\)"):
        Checkpoint(tmp_path, {"model": "abd", "code version": "1"}).load()


# -- clusters ----------------------------------------------------------------------------------------------------------------


def test_resampled_statistics_are_weighted_sums_of_clusters() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn((2 * 4, 3, 5), generator=generator, dtype=torch.float64)
    values[6:] = 0  # two clusters of the second category are empty
    sums = StatisticSums(("a", "b"))
    sums.update({"contrasts/site/x.y": values, "calibration/site/x.y": values[:1]})
    counts = {"contrasts": [5, 1, 2, 3, 4, 4, 0, 0], "calibration": [7]}
    found = finished(sums, counts, 4, ("contrasts/x",), "hash")
    np.testing.assert_allclose(found.sums["contrasts/site/x.y"], values.numpy().reshape(2, 4, 3, 5).sum(1), rtol=1e-12)
    assert found.counts == {"contrasts": (11, 8), "calibration": (7,)}
    means = []
    for one in resampled(found, 400, torch.Generator().manual_seed(1)):
        assert one.sums["calibration/site/x.y"].equal(found.sums["calibration/site/x.y"])
        assert 4 <= one.counts["contrasts"][0] <= 20
        assert one.counts["contrasts"][1] == 8  # both of its clusters hold four contrasts
        means.append(one.sums["contrasts/site/x.y"][0].numpy())
    spread = values.numpy().reshape(2, 4, 3, 5)[0].std(0) * np.sqrt(4)  # of a sum of four draws
    assert np.abs(np.mean(means, 0) - found.sums["contrasts/site/x.y"][0].numpy()).max() < 5 * spread.max() / 20
    np.testing.assert_allclose(np.std(means, 0), spread, rtol=0.2)


def test_windows_are_those_of_the_composition() -> None:
    assert [len(window) for window in batches.windows_of([contrast(i) for i in range(5)])] == [5]
