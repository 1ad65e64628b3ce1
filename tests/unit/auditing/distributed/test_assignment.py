"""Dealing micro-batches: nothing twice, nothing lost, balanced, whatever was done before."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from fairprune_framework.api.interfaces import Pass
from fairprune_framework.auditing.batches import composition_hash
from fairprune_framework.auditing.distributed import assignment as sharding
from fairprune_framework.auditing.distributed.assignment import Work, assigned_batches, balance, whole_windows
from fairprune_framework.auditing.distributed.completed import CompletedBatches
from fairprune_framework.contrasts.alignment import AlignedContrast, Tokens


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
    assert all(after.is_complete(each.number, w) for each in todo for w in range(each.count))


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
