"""What plugins may read of a site: their own sums by name, the streams that they declared, and the services that they asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import FrozenInstanceError, dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fairprune_framework.api.interfaces import Needs, Observation, Pass, SiteContext, Statistic
from fairprune_framework.auditing.statistics import OBSERVED, Statistics, key_of
from fairprune_framework.errors import FairpruneError
from fairprune_framework.models.architecture import recognise
from fairprune_framework.selection.contexts import Services, context, generator_for
from fairprune_framework.testing.scorer_bench import in_pairs
from fairprune_framework.testing.tiny import tiny_model

ARCHITECTURE = recognise(tiny_model("llama"))
NAME, SITE = next(iter(ARCHITECTURE.sites.items()))
DRAWN = [162415, 209216, 718157]


@dataclass(frozen=True, kw_only=True)
class Both(Statistic):
    """Of contrasts and of controls."""

    name: str = "x"

    def passes(self, layers: int) -> Sequence[Pass]:
        return (Pass(), Pass(stream="controls"))

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        raise NotImplementedError


def sums_of(*groups: float) -> Tensor:
    return torch.stack([torch.full((1, SITE.units), value, dtype=torch.float64) for value in groups])


def statistics() -> Statistics:
    return Statistics(
        sums={
            key_of("contrasts", NAME, "x.y"): sums_of(1.0, 2.0),
            key_of("contrasts", NAME, "z.y"): sums_of(8.0, 9.0),
            key_of("contrasts", NAME, OBSERVED): torch.tensor([3.0, 4.0], dtype=torch.float64).reshape(2, 1, 1),
            key_of("controls", NAME, "x.y"): sums_of(5.0, 6.0, 7.0),
            key_of("controls", NAME, OBSERVED): torch.tensor([1.0, 1.0, 2.0], dtype=torch.float64).reshape(3, 1, 1),
        },
        categories=("age", "race"),
        control_categories=("fruit", "tool", "town"),
        counts={"contrasts": (3, 5), "controls": (1, 1, 2), "calibration": (9,)},
        statistics=(),
        composition="c",
    )


def at(group: int | None = 0) -> SiteContext:
    return context(statistics(), "contrasts", group, SITE, Needs(statistics=(Both(),)), {}, torch.Generator())


def test_sums_of_a_category_and_of_all() -> None:
    one, every = at(1), at(None)
    assert (one.category, one.count, one.observed.unique().tolist()) == ("race", 5, [4])
    assert (every.category, every.count, every.observed.unique().tolist()) == (None, 8, [7])
    assert one.sums["x.y"].unique().tolist() == [2.0]
    assert every.sums["x.y"].unique().tolist() == [3.0]
    assert list(one.sums) == ["x.y"], "sums of statistics that others declared are not given"
    assert len(one.sums) == 1


def test_another_stream_by_category() -> None:
    tools = at().of("controls", "tool")
    assert (tools.count, tools.sums["x.y"].unique().tolist(), tools.observed.unique().tolist()) == (1, [6.0], [1])
    assert at().of("controls").sums["x.y"].unique().tolist() == [18.0]


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (
            lambda at: at.sums["z.y"],
            r"no sums 'z\.y' of the stream 'contrasts'; available: x\.y; at\.of\('controls'\) has those of another",
        ),
        (
            lambda at: at.of("calibration"),
            r"no statistic was declared for the stream 'calibration'; declared: contrasts, controls",
        ),
        (lambda at: at.of("controls", "race"), r"the stream 'controls' has no category 'race'; there are: fruit, tool, town"),
    ],
)
def test_what_is_not_there_is_named_beside_what_is(read: Any, said: str) -> None:
    with pytest.raises(KeyError, match=said):
        read(at())


def test_what_is_drawn_for_a_seed_stays_the_same_from_release_to_release() -> None:
    """Whoever repeats a run of an earlier release draws what it drew: these are the numbers of 0.1."""
    drawn = torch.randint(10**6, (3,), generator=generator_for(0, "fairprune_framework:random", NAME))
    assert drawn.tolist() == DRAWN
    other = torch.randint(10**6, (3,), generator=generator_for(1, "fairprune_framework:random", NAME))
    assert other.tolist() != DRAWN


def test_services_are_made_for_those_who_asked() -> None:
    made: list[str | None] = []

    def probe(category: str | None) -> Any:
        made.append(category)
        return "a probe"

    services = Services(
        readout=lambda: torch.square, probe=probe, attribute_tokens=lambda: {"age": ((1,), (2, 3)), "race": ((4,), (5,))}
    )
    assert services.for_plugin(Needs(), "age") == {"readout": None, "probe": None, "attribute_tokens": ()}
    assert made == []
    assert services.for_plugin(Needs(probe=True), "age")["probe"] == "a probe"
    assert made == ["age"]
    given = services.for_plugin(Needs(readout=True), "race")
    assert (given["readout"], given["attribute_tokens"]) == (torch.square, ((4,), (5,)))
    assert services.for_plugin(Needs(readout=True), None)["attribute_tokens"] == ((1,), (2, 3), (4,), (5,))  # of all


@pytest.mark.parametrize("needs", [Needs(readout=True), Needs(probe=True)])
def test_a_service_that_nobody_can_make(needs: Needs) -> None:
    with pytest.raises(FairpruneError, match="declared a readout or a probe, and was given none"):
        Services().for_plugin(needs, None)


def test_what_was_observed_is_said_of_every_column() -> None:
    """Also where a unit has several; and calibration text has no category."""
    (wide, *_) = in_pairs(ARCHITECTURE).sites.values()
    found = context(statistics(), "contrasts", 1, wide, Needs(statistics=(Both(),)), {}, torch.Generator())
    assert (wide.units, found.observed.tolist(), found.observed.dtype) == (24, [4] * 48, torch.long)
    text = context(statistics(), "calibration", 0, SITE, Needs(), {}, torch.Generator())
    assert (text.category, text.count, text.observed.tolist()) == (None, 9, [0] * 48)
    assert (text.readout, text.probe, text.attribute_tokens) == (None, None, ())


def test_what_a_context_is_given_beside_sums() -> None:
    weights, generator = {"out": torch.ones(2)}, torch.Generator()
    given = {"readout": torch.square, "probe": "a probe", "attribute_tokens": ((1,),)}
    found = context(statistics(), "contrasts", 0, SITE, Needs(statistics=(Both(),)), weights, generator, given)
    assert (found.weights, found.generator, found.site) == (weights, generator, SITE)
    assert (found.readout, found.probe, found.attribute_tokens) == (torch.square, "a probe", ((1,),))


def test_nothing_is_available_where_nothing_was_declared() -> None:
    found = context(statistics(), "contrasts", 0, SITE, Needs(), {}, torch.Generator())
    with pytest.raises(KeyError, match=r"no sums 'x\.y' of the stream 'contrasts'; available: none"):
        found.sums["x.y"]
    with pytest.raises(KeyError, match="no statistic was declared for the stream 'controls'; declared: none"):
        found.of("controls")


def test_services_are_made_by_name_and_do_not_change() -> None:
    with pytest.raises(TypeError, match="positional"):
        Services(lambda: torch.square)  # type: ignore[misc]
    services = Services()
    with pytest.raises(FrozenInstanceError):
        services.readout = None  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        at().of.own = ()  # type: ignore[misc, union-attr]
    assert services.for_plugin(Needs(), None) == {"readout": None, "probe": None, "attribute_tokens": ()}
    assert Services(readout=lambda: torch.square).for_plugin(Needs(readout=True), "age")["attribute_tokens"] == ()


def test_sums_of_an_optional_stream_that_the_prompts_lack_say_so() -> None:
    contrasts = replace(statistics(), counts={"contrasts": (3, 5)}, control_categories=())
    lacking = replace(contrasts, sums={key: value for key, value in contrasts.sums.items() if not key.startswith("controls")})
    needs = Needs(statistics=(Both(),), optional_streams=frozenset({"controls"}))
    controls = context(lacking, "contrasts", 0, SITE, needs, {}, torch.Generator()).of("controls")
    assert controls.count == 0
    with pytest.raises(KeyError, match=r"no sums 'x\.y': the prompts have no contrasts of the stream 'controls', look at its"):
        controls.sums["x.y"]
