"""Random sets that stand where the plan stands."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fairprune_framework.api.types import Plan
from fairprune_framework.contrasts.alignment import align_all, vocabularies
from fairprune_framework.evaluation.random_sets import RandomSet, matched_sets, random_changes
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.testing.tiny import tiny_contrasts, tiny_model, tiny_tokenizer

NORMS = {"a": torch.arange(1.0, 41.0), "b": torch.arange(1.0, 7.0)}
ALLOWED = {"a": torch.ones(40, dtype=torch.bool), "b": torch.tensor([True] * 5 + [False])}
SITES = {"a": (3, 20), "b": (0, 1, 4)}


def drawn(**words: Any) -> list[RandomSet]:
    plan = Plan(**({"model": "m", "fingerprint": "f", "operator": "remove", "sites": SITES} | words), requested={}, achieved={})
    return list(matched_sets(plan, NORMS, ALLOWED, 50, seed=0))


def test_as_many_of_each_site_near_in_norm_and_none_planned() -> None:
    for one in drawn():
        assert len(set(one.units["a"])) == 2
        assert not set(one.units["a"]) & {3, 20}
        assert all(abs(unit - planned) <= 9 for unit, planned in zip(one.units["a"], (3, 20), strict=True))
        assert one.scaling == 0.0


def test_where_most_are_planned_they_change_places() -> None:
    for one in drawn():
        assert len(one.units["b"]) >= 2  # the last may find nothing but itself
        assert len(set(one.units["b"])) == len(one.units["b"])
        assert 5 not in one.units["b"]
        assert all(unit != planned for unit, planned in zip(one.units["b"], (0, 1, 4), strict=False))
    assert len({tuple(one.units["b"]) for one in drawn()}) > 5


@pytest.mark.parametrize("sites", [{"a": (3,)}, {"a": (3, 20)}])
def test_of_few_neurons_no_set_comes_twice(sites: dict[str, tuple[int, ...]]) -> None:
    """A neighbour drawn again and again would stand for many sets in what a plan must fall below."""
    found = [frozenset(one.units["a"]) for one in drawn(sites=sites)]
    assert len(set(found)) == len(found) == min(50, 39 if len(sites["a"]) == 1 else 50)


def test_there_are_no_more_sets_than_neurons_to_draw() -> None:
    assert sorted(one.units["b"][0] for one in drawn(sites={"b": (0,)})) == [1, 2, 3, 4]


def test_factors_go_with_what_is_drawn_in_place_of_a_unit() -> None:
    factors = {"a": (0.5, 1.5), "b": (0.25, 2.0, 1.25)}
    for one in drawn(operator="scale", factors=factors):
        assert isinstance(one.scaling, dict)
        assert one.scaling["a"] == (0.5, 1.5)
        assert one.scaling["b"] == factors["b"][: len(one.units["b"])]
    assert {one.scaling for one in drawn(operator="scale", factor=0.5)} == {0.5}


def test_a_divergence_of_0_has_no_changes() -> None:
    model = tiny_model("llama").eval()
    aligned, _ = align_all(tiny_contrasts()[:2], Encoder(tiny_tokenizer()))
    values = {category: len(names) for category, names in vocabularies(tiny_contrasts()[:2]).items()}
    loaded = SimpleNamespace(model=model, architecture=recognise(model))
    sets = iter([RandomSet(units={}, scaling=0.0)])
    assert random_changes(loaded, aligned, values, {one.id: 0.0 for one in aligned}, sets, 512) == ()  # type: ignore[arg-type]
