"""Stored widths by hand."""

from __future__ import annotations

from typing import Any

import pytest

from fairprune_framework.api.types import Plan, Site
from fairprune_framework.models.architecture import recognise
from fairprune_framework.surgery.widths import stored_widths
from fairprune_framework.testing.tiny import tiny_model


def plan(sites: dict[str, tuple[int, ...]], operator: Any = "remove", factor: float | None = None) -> Plan:
    return Plan(model="m", fingerprint="f", operator=operator, factor=factor, sites=sites, requested={}, achieved={})


def site(name: str, units: int, group: str = "w", multiple: int = 1) -> Site:
    return Site(
        name=name, layer=0, units=units, multiple=multiple, slices=(), config_fields={}, width_group=group, taps=frozenset()
    )


def first(count: int) -> tuple[int, ...]:
    return tuple(range(count))


@pytest.mark.parametrize(
    ("cuts", "round_to", "expected"),
    [
        ((5, 9), 1, 43),  # the least-cut site decides
        ((9, 0), 1, 48),
        ((9, 9), 16, 48),
        ((16, 20), 16, 32),
        ((17, 20), 16, 32),
        ((40, 40), 100, 48),  # never wider than it was
    ],
)
def test_the_least_cut_site_decides_rounded_up(cuts: tuple[int, int], round_to: int, expected: int) -> None:
    sites = {name: site(name, 48) for name in ("a", "b")}
    chosen = {name: first(count) for name, count in zip(sites, cuts, strict=True)}
    assert stored_widths(plan(chosen), sites, round_to) == {("w", 48): expected}


def test_groups_are_apart_and_a_site_may_ask_for_a_multiple() -> None:
    sites = {"a": site("a", 48), "b": site("b", 64), "c": site("c", 40, "x"), "e": site("e", 48, "y", 8)}
    chosen = plan({"a": first(3), "b": first(10), "e": first(3)})
    assert stored_widths(chosen, sites, 1) == {("w", 48): 45, ("w", 64): 54, ("x", 40): 40, ("y", 48): 48}
    assert stored_widths(plan({"e": first(9)}), {"e": sites["e"]}, 5) == {("y", 48): 40}


def test_experts_of_a_grouped_product_come_in_eights() -> None:
    """torch refuses rows of which the bytes are no multiple of 16."""
    assert {each.multiple for each in recognise(tiny_model("mixtral")).sites.values()} == {8}
    assert {each.multiple for each in recognise(tiny_model("llama")).sites.values()} == {1}


@pytest.mark.parametrize("operator", ["zero", "scale"])
def test_other_operators_keep_every_width(operator: str) -> None:
    chosen = plan({"a": first(9)}, operator, 0.5 if operator == "scale" else None)
    assert stored_widths(chosen, {"a": site("a", 48)}, 1) == {("w", 48): 48}
