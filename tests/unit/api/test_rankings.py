"""What policies share against sorted lists in plain Python, and matched draws."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairprune_framework.api.rankings import apportion, draw_matched, eligible, ranking, select_top, to_choice, top_share
from fairprune_framework.api.types import Budget, Scores, Site

SIZES = {"layers.0.b": (0, 4), "layers.0.a": (0, 6), "layers.1.a": (1, 8), "layers.2.a": (2, 5)}
NAMES = sorted(SIZES)
TOTAL = sum(units for _, units in SIZES.values())
LEVELS = st.lists(st.integers(0, 6), min_size=TOTAL, max_size=TOTAL)
"""One value for each unit, with many ties."""


def split(values: list[Any], dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """A value for each unit of each site, in the order of the names."""
    return dict(zip(NAMES, torch.tensor(values, dtype=dtype).split([SIZES[name][1] for name in NAMES]), strict=True))


def scores(importance: list[int], observed: list[bool] | None = None) -> Scores:
    sites = {
        name: Site(name=name, layer=layer, units=units, slices=(), config_fields={}, width_group="w", taps=frozenset())
        for name, (layer, units) in SIZES.items()
    }
    values = split(importance)
    seen = split(observed or [True] * TOTAL, torch.bool)
    return Scores(sites=sites, bias=values, importance=values, by_category={}, observed=seen)


def units() -> list[tuple[str, int]]:
    return [(name, unit) for name in NAMES for unit in range(SIZES[name][1])]


@given(
    LEVELS, st.lists(st.booleans(), min_size=TOTAL, max_size=TOTAL), st.sampled_from([0.0, 0.1, 0.5, 0.99]), st.integers(0, 2)
)
@settings(max_examples=60, deadline=None)
def test_eligible(importance: list[int], observed: list[bool], protect: float, protected: int) -> None:
    budget = Budget(amount=1, unit="total", protected_layers=frozenset({protected}))
    found = eligible(scores(importance, observed), budget, protect)
    open_ = [(at, i) for i, at in enumerate(units()) if SIZES[at[0]][0] != protected]
    shielded = {at for at, i in sorted(open_, key=lambda pair: -importance[pair[1]])[: math.floor(protect * len(open_))]}
    expected = {at for at, i in open_ if observed[i] and at not in shielded}
    assert list(found) == [name for name in NAMES if SIZES[name][0] != protected]
    assert {(name, int(unit)) for name, mask in found.items() for unit in mask.nonzero().flatten()} == expected


def test_nothing_is_eligible_where_every_layer_is_protected() -> None:
    budget = Budget(amount=1, unit="total", protected_layers=frozenset({0, 1, 2}))
    given_ = scores([0] * TOTAL)
    assert eligible(given_, budget) == {}
    assert list(ranking(given_, budget, given_.bias, {})) == []


@given(LEVELS, st.sampled_from([0.0, 0.01, 0.2, 0.5, 1.0]))
@settings(max_examples=40, deadline=None)
def test_the_top_share(values: list[int], share: float) -> None:
    found = top_share(split(values), share)
    best = sorted(range(TOTAL), key=lambda i: -values[i])[: max(1, math.floor(share * TOTAL))]
    assert {(n, int(u)) for n, mask in found.items() for u in mask.nonzero().flatten()} == {units()[i] for i in best}


BUDGETS = st.builds(
    Budget,
    amount=st.integers(1, 9),
    unit=st.sampled_from(["total", "per-layer"]),
    max_layer_share=st.sampled_from([1.0, 0.5, 0.2]),
    protected_layers=st.frozensets(st.integers(0, 2), max_size=1),
)


@given(LEVELS, st.lists(st.booleans(), min_size=TOTAL, max_size=TOTAL), BUDGETS)
@settings(max_examples=80, deadline=None)
def test_ranking_goes_down_by_priority_within_the_room_of_each_layer(
    values: list[int], may: list[bool], budget: Budget
) -> None:
    given_, priority = scores([0] * TOTAL), split(values)
    allowed = {name: mask & (SIZES[name][0] not in budget.protected_layers) for name, mask in split(may, torch.bool).items()}
    room = {}
    for layer in (0, 1, 2):
        size = sum(units for at, units in SIZES.values() if at == layer)
        room[layer] = math.floor(budget.max_layer_share * size + 1e-9)
        if budget.unit == "per-layer":
            room[layer] = min(room[layer], int(budget.amount))
    spare = {name: units - 1 for name, (_, units) in SIZES.items()}
    expected = []
    for name, unit in sorted(units(), key=lambda at: -priority[at[0]][at[1]].item()):
        layer = SIZES[name][0]
        if allowed[name][unit] and room[layer] and spare[name]:
            room[layer] -= 1
            spare[name] -= 1
            expected.append((name, unit))
    assert list(ranking(given_, budget, priority, allowed)) == expected
    found = select_top(given_, budget, priority, allowed, "nothing may go")
    taken = expected[: budget.units(given_.sites)]
    assert {(name, unit) for name, chosen in found.units.items() for unit in chosen.tolist()} == set(taken)
    assert found.reason == (None if taken else "nothing may go")


def test_a_choice_keeps_the_order_within_each_site() -> None:
    priority = split(list(range(TOTAL)))
    found = to_choice([("layers.1.a", 7), ("layers.0.a", 5), ("layers.1.a", 2)], priority)
    assert {name: chosen.tolist() for name, chosen in found.units.items()} == {"layers.0.a": [5], "layers.1.a": [7, 2]}
    assert found.order["layers.1.a"].equal(priority["layers.1.a"][[7, 2]])
    assert list(found.units) == sorted(found.units)
    assert to_choice([], priority, "none").reason == "none"


# -- matched draws -----------------------------------------------------------------------------------------------------------


def test_matched_neurons_have_nearly_the_same_size() -> None:
    generator = torch.Generator().manual_seed(0)
    size = {"a": torch.rand(400, generator=generator).exp(), "b": torch.rand(10, generator=generator)}
    reference = {"a": torch.arange(0, 40), "b": torch.arange(0, 8)}
    allowed = {"a": torch.arange(400) % 5 > 0, "b": torch.ones(10, dtype=torch.bool)}
    drawn = draw_matched(reference, size, allowed, torch.Generator().manual_seed(1), neighbours=4)
    assert len(set(drawn["a"].tolist())) == 40
    assert not set(drawn["a"].tolist()) & set(range(40))
    assert all(allowed["a"][drawn["a"]])
    free = [i for i in range(40, 400) if i % 5]
    for unit, other in zip(range(40), drawn["a"].tolist(), strict=True):
        nearest = sorted(abs(size["a"][i].log() - size["a"][unit].log()).item() for i in free)
        assert abs(size["a"][other].log() - size["a"][unit].log()).item() <= nearest[4 + 39]  # others may be taken already
    assert drawn["b"].tolist() in ([8, 9], [9, 8])  # no more are left


def test_a_site_with_too_few_left_gives_what_it_has() -> None:
    size = {"a": torch.arange(1.0, 7.0)}
    allowed = {"a": torch.tensor([True, True, False, True, False, True])}
    drawn = draw_matched({"a": torch.tensor([0, 1, 2])}, size, allowed, torch.Generator().manual_seed(0))
    assert sorted(drawn["a"].tolist()) == [3, 5]


def test_the_nearest_by_ratio_with_one_neighbour() -> None:
    size = {"a": torch.tensor([1.0, 10.0, 2.0, 100.0, 6.0])}
    allowed = {"a": torch.ones(5, dtype=torch.bool)}
    drawn = draw_matched({"a": torch.tensor([1])}, size, allowed, torch.Generator(), neighbours=1)
    assert drawn["a"].tolist() == [4]  # 6 : 10 is nearer than 100 : 10 and 2 : 10
    drawn = draw_matched({"a": torch.tensor([3, 2])}, size, allowed, torch.Generator(), neighbours=1)
    assert drawn["a"].tolist() == [1, 0]


@pytest.mark.parametrize("neighbours", [1, 3])
def test_every_neighbour_is_drawn_equally_often(neighbours: int) -> None:
    size = {"a": torch.tensor([1.0, 1.1, 0.8, 1.4, 9.0])}
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(5)
    for _ in range(600):
        (drawn,) = draw_matched({"a": torch.tensor([0])}, size, {"a": torch.ones(5).bool()}, generator, neighbours)["a"]
        counts[drawn] += 1
    nearest = [1, 2, 3][:neighbours]
    assert counts.nonzero().flatten().tolist() == nearest
    sd = (600 * (1 / neighbours) * (1 - 1 / neighbours)) ** 0.5
    assert (counts[nearest] - 600 / neighbours).abs().max() <= 4 * sd


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 12)), min_size=1, max_size=5),
    st.integers(0, 40),
)
@settings(deadline=None)
def test_apportion_fills_what_there_is_room_for(layers: list[tuple[int, int]], count: int) -> None:
    weights = {layer: float(weight) for layer, (weight, _) in enumerate(layers)}
    most = {layer: room for layer, (_, room) in enumerate(layers)}
    found = apportion(weights, count, most)
    open_room = sum(room for layer, room in most.items() if weights[layer] > 0)
    assert sum(found.values()) == min(count, open_room)
    assert all(0 <= found[layer] <= most[layer] for layer in found)
    if all(room >= count for room in most.values()) and sum(weights.values()):
        exact = {layer: count * weight / sum(weights.values()) for layer, weight in weights.items()}
        assert all(abs(found[layer] - exact[layer]) < 1 for layer in found)
