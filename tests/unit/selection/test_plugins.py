"""The plugins of a recipe: built when asked for, labelled by their distribution, and what they want of an audit."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from torch import Tensor

from fairprune_framework import discovery
from fairprune_framework.api.interfaces import ImportanceScorer, Needs, SiteContext
from fairprune_framework.api.types import VECTORS
from fairprune_framework.auditing.statistics import Statistics
from fairprune_framework.errors import UnknownName, UserError
from fairprune_framework.models.architecture import recognise
from fairprune_framework.recipes.recipe import PluginSpec, Recipe
from fairprune_framework.selection.plugins import Plugins, misfit_of_weights, missing_taps
from fairprune_framework.testing.families import small_model

RECIPE = Recipe(
    bias=PluginSpec(plugin="variance", options={"relative": True}),
    importance=PluginSpec(plugin="taylor"),
    policy=PluginSpec(plugin="uniform"),
)


def statistics(names: set[str], clusters: Any = ()) -> Statistics:
    return Statistics(sums={}, categories=(), counts={}, statistics=tuple(names), composition="c", cluster_counts=clusters)


def test_labels_name_the_distribution() -> None:
    plugins = Plugins(RECIPE)
    assert [plugins.label(kind) for kind in ("bias", "importance", "policy")] == [
        f"fairprune_framework:{name}" for name in ("variance", "taylor", "uniform")
    ]
    written = Plugins(replace(RECIPE, bias=PluginSpec(plugin="fairprune_framework:variance")))
    assert written.label("bias") == "fairprune_framework:variance"


def test_options_reach_the_plugin_and_it_is_built_once() -> None:
    plugins = Plugins(RECIPE)
    assert plugins.bias.relative is True  # type: ignore[attr-defined]
    assert plugins.bias is plugins.bias
    assert plugins.all == (plugins.bias, plugins.importance, plugins.policy)


def test_names_are_checked_without_building(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "build", lambda *_: pytest.fail("it was built"))
    Plugins(RECIPE).check_names()
    with pytest.raises(UnknownName, match="Did you mean 'variance'"):
        Plugins(replace(RECIPE, bias=PluginSpec(plugin="varience"))).check_names()


def test_what_an_audit_lacks_for_them() -> None:
    plugins = Plugins(RECIPE)
    demand = plugins.demand(2)
    assert demand.calibration
    assert plugins.missing(statistics(demand.names(2)), {}, 2) is None
    assert plugins.missing(statistics(demand.names(2) | {"contrasts/more"}), {}, 2) is None
    first = min(demand.names(2))
    assert plugins.missing(statistics(demand.names(2) - {first}), {}, 2) == first
    passes = plugins.passes()
    assert {pass_.stream for pass_ in passes} == {"contrasts", "calibration"}


@dataclass(frozen=True, kw_only=True)
class Asking(ImportanceScorer):
    """Asks for bootstrap replicates."""

    def needs(self) -> Needs:
        return Needs(replicates=5)

    def score(self, at: SiteContext) -> Tensor:
        raise NotImplementedError


def test_clusters_that_a_further_plugin_wants() -> None:
    plugins = Plugins(RECIPE, also=(Asking(),))
    names = plugins.demand(2).names(2)
    assert plugins.missing(statistics(names), {}, 2) == "clusters of templates, which a policy resamples"
    assert plugins.missing(statistics(names, ((1, 2),)), {}, 2) is None


def test_what_a_plugin_cannot_be_given() -> None:
    Plugins(RECIPE).check_needs()
    asking = Plugins(RECIPE)
    asking.importance = Asking()
    with pytest.raises(UserError, match="fairprune_framework:taylor asks for bootstrap replicates"):
        asking.check_needs()
    greedy = replace(RECIPE, policy=PluginSpec(plugin="greedy"), operator="scale", factor="auto")
    with pytest.raises(UserError, match="greedy probes while it chooses, and needs a number for --factor"):
        Plugins(greedy).check_needs()
    Plugins(replace(greedy, factor="0.5")).check_needs()
    Plugins(replace(RECIPE, operator="scale", factor="auto")).check_needs()  # nothing probes before it


def test_a_plugin_that_looks_at_what_a_site_lacks_is_refused() -> None:
    """A gate of an MLP without one; taps that a statistic does without are no matter."""
    sites = recognise(small_model("gpt2")).sites.values()
    gate = Plugins(replace(RECIPE, bias=PluginSpec(plugin="gate-up-difference")))
    with pytest.raises(
        UserError, match=r"GateUpDifference looks at gate, which transformer\.h\.0\.mlp does not have: it shows .*up"
    ):
        gate.check_sites(sites)
    Plugins(replace(RECIPE, importance=PluginSpec(plugin="fisher"))).check_sites(sites)
    gate.check_sites(recognise(small_model("llama")).sites.values())


@pytest.mark.parametrize("name", ["max-abs-weight", "peak-to-peak", "weight-variance", "product-of-norms", "l2-norm"])
def test_scores_of_gate_and_up_weights_are_refused_where_there_are_none(name: str) -> None:
    plugins = Plugins(replace(RECIPE, importance=PluginSpec(plugin=name)))
    (site, *_) = recognise(small_model("gpt_neox")).sites.values()
    plugins.check_sites([site])  # no gate, but up weights
    heads = replace(site, name="layers.0.attention", kind="heads", slices=tuple(s for s in site.slices if s.role == "out"))
    says = r"cannot score layers.0.attention, whose weights are out: RuntimeError"
    with pytest.raises(UserError, match=says):
        plugins.check_sites([heads])
    Plugins(replace(RECIPE, importance=PluginSpec(plugin="random"))).check_sites([heads])


@dataclass(frozen=True, kw_only=True)
class OneForAUnit(ImportanceScorer):
    """A score for each unit, where one for each column is asked for."""

    def score(self, at: SiteContext) -> Tensor:
        return at.observed.new_ones(at.site.units).double()


@dataclass(frozen=True, kw_only=True)
class Leaving(ImportanceScorer):
    """Talks, and ends the interpreter, or is interrupted."""

    interrupted: bool = False

    def score(self, at: SiteContext) -> Tensor:
        print("goodbye")
        raise KeyboardInterrupt if self.interrupted else SystemExit(0)


def test_a_scorer_that_is_tried_neither_ends_the_command_nor_prints_into_its_answer(capsys: pytest.CaptureFixture[str]) -> None:
    (site, *_) = recognise(small_model("gpt_neox")).sites.values()
    plugins = Plugins(RECIPE, also=(Leaving(),))
    with pytest.raises(UserError, match=f"the plugin Leaving cannot score {site.name}, .*: SystemExit: 0"):
        plugins.check_sites([site])
    assert capsys.readouterr() == ("", "goodbye\n")
    with pytest.raises(KeyboardInterrupt):
        misfit_of_weights(Leaving(interrupted=True), site)


def test_scores_of_the_wrong_number_are_refused_before_the_audit() -> None:
    (site, *_) = recognise(small_model("gpt_neox")).sites.values()
    assert misfit_of_weights(OneForAUnit(), site) is None
    wide = replace(site, units=24, unit_width=2)
    assert str(misfit_of_weights(OneForAUnit(), wide)).endswith("(2,) scores for 4 columns")


@dataclass(frozen=True, kw_only=True)
class Weighing(ImportanceScorer):
    """Reads weights, and says what it was given."""

    more: Needs = field(default_factory=Needs)

    def needs(self) -> Needs:
        return replace(self.more, weights=True)

    def score(self, at: SiteContext) -> Tensor:
        TRIED.append(at)
        raise ValueError("it was tried")


TRIED: list[SiteContext] = []


def test_a_scorer_of_weights_alone_is_tried_on_made_up_ones() -> None:
    (site, *_) = recognise(small_model("gpt_neox")).sites.values()
    TRIED.clear()
    said = misfit_of_weights(Weighing(), site)
    assert (
        said == f"cannot score {site.name}, whose weights are {', '.join(sorted(TRIED[0].weights))}: ValueError: it was tried"
    )
    (at,) = TRIED
    assert (at.site.units, at.observed.tolist(), at.category, at.readout, at.probe) == (2, [0, 0], None, None, None)
    for slice_ in site.slices:
        rows = at.weights[slice_.role]
        assert len(rows) == 2 * slice_.width
        assert rows.ndim == (1 if slice_.role in VECTORS else 2)
        assert len(rows.flatten().unique()) == rows.numel()  # no two weights are alike
    needed = discovery.build("bias", "variance").needs().statistics  # type: ignore[union-attr]
    for more in (Needs(statistics=needed), Needs(readout=True), Needs(probe=True)):
        assert misfit_of_weights(Weighing(more=more), site) is None  # more than weights: it cannot be tried
    assert len(TRIED) == 1


def test_a_recipe_without_a_plugin_names_none() -> None:
    assert RECIPE.architecture is None
    Plugins(RECIPE).check_names()
    with pytest.raises(UnknownName, match="absent"):
        Plugins(replace(RECIPE, architecture=PluginSpec(plugin="absent"))).check_names()


def test_a_statistic_may_do_without_some_of_what_it_looks_at() -> None:
    (site, *_) = recognise(small_model("gpt2")).sites.values()
    fisher = discovery.build("importance", "fisher")
    assert "gate" not in site.taps
    assert missing_taps(fisher, site) is None
    said = missing_taps(discovery.build("bias", "mean-abs-difference"), site)
    assert said == f"looks at gate, which {site.name} does not have: it shows {', '.join(sorted(site.taps))}"
    assert missing_taps(discovery.build("importance", "l2-norm"), site) is None
