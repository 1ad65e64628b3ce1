"""Checks of every kind of plugin, a bad plugin for each; exemptions, and what cannot be checked."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fairprune_framework import discovery
from fairprune_framework.api import (
    BiasScorer,
    Needs,
    Observation,
    Pass,
    SiteContext,
    Statistic,
)
from fairprune_framework.testing.contracts import check_plugin
from fairprune_framework.testing.tiny import tiny_model

CALLS: list[int] = []


@dataclass(frozen=True, kw_only=True)
class Nothing(Statistic):
    """Sums nothing."""

    name: str = "nothing"

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        return {}


@dataclass(frozen=True, kw_only=True)
class Good(BiasScorer):
    """Well made; it scores nothing."""

    power: float = 1.0

    def score(self, at: SiteContext) -> Tensor:
        return torch.zeros(at.site.units, dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class Undocumented(Good):
    def score(self, at: SiteContext) -> Tensor:
        return super().score(at)


@dataclass(frozen=True, kw_only=True)
class OfAnotherVersion(Good):
    """Bad."""

    api_version = 2


class NoDataclass(Good):
    """Bad."""


@dataclass(kw_only=True)
class Changeable(BiasScorer):
    """Bad."""

    power: float = 1.0

    def score(self, at: SiteContext) -> Tensor:
        return torch.zeros(at.site.units, dtype=torch.float64)


@dataclass(frozen=True)
class Positional(BiasScorer):
    """Bad."""

    power: float = 1.0

    def score(self, at: SiteContext) -> Tensor:
        return torch.zeros(at.site.units, dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class Doubling(Good):
    """Bad."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "power", self.power * 2)


@dataclass(frozen=True, kw_only=True, eq=False)
class Identity(BiasScorer):
    """Bad."""

    def score(self, at: SiteContext) -> Tensor:
        return torch.zeros(at.site.units, dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class Unpicklable(Good):
    """Bad."""

    function: Any = field(default_factory=lambda: lambda x: x, init=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class ForeverNew(Good):
    """Bad."""

    def needs(self) -> Needs:
        CALLS.append(1)
        return Needs(statistics=(Nothing(name=f"nothing-{len(CALLS)}"),))


@dataclass(frozen=True, kw_only=True)
class Resampling(Good):
    """Bad: replicates are given to policies alone."""

    def needs(self) -> Needs:
        return Needs(replicates=5)


@dataclass(frozen=True, kw_only=True)
class OfDreams(Nothing):
    """Listens to what there is not, in models of several layers."""

    def passes(self, layers: int) -> Any:
        return (Pass(stream="dreams" if layers > 1 else "contrasts"),)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Dreaming(Good):
    """Bad."""

    def needs(self) -> Needs:
        return Needs(statistics=(OfDreams(),))


@pytest.mark.parametrize(
    ("plugin", "check"),
    [
        (Undocumented(), "interface"),
        (discovery.build("importance", "max-abs-weight"), "interface"),
        (OfAnotherVersion(), "api-version"),
        (NoDataclass(), "frozen-dataclass"),
        (Changeable(), "frozen-dataclass"),
        (Positional(), "frozen-dataclass"),
        (Doubling(), "options-round-trip"),
        (Identity(), "equal-by-value"),
        (Changeable(), "equal-by-value"),
        (Unpicklable(), "picklable"),
        (ForeverNew(), "declared-needs"),
        (Resampling(), "declared-needs"),
        (Dreaming(), "declared-needs"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_plugin_that_is_badly_made_is_caught(plugin: Any, check: str, fails: Callable[..., None]) -> None:
    fails("bias", plugin, check)


def test_every_common_check_has_a_bad_plugin(common: set[str]) -> None:
    (mark,) = test_a_plugin_that_is_badly_made_is_caught.pytestmark  # type: ignore[attr-defined]
    assert {check for _, check in mark.args[1]} == common
    for kind, name in (("bias", "variance"), ("importance", "taylor"), ("policy", "uniform"), ("architecture", "glu")):
        found = check_plugin(kind, discovery.build(kind, name), only=[])  # type: ignore[arg-type]
        assert common < set(found.checks)


WRONG = {"badly made": 12, "bias": 49, "importance": 4, "policy": 40}
"""How many distinct wrong plugins there are, each with the check that is made for it; fewer would be a promise taken back."""


def test_there_are_as_many_wrong_plugins_as_are_promised() -> None:
    """Counted where they are: classes, so that a plugin that is caught by two checks counts once."""
    found: dict[str, set[type]] = {}
    modules = {"test_contracts": "badly made", "test_scorer_contract": "bias", "test_policy_contract": "policy"}
    for name, kind in modules.items():
        spec = importlib.util.spec_from_file_location(f"counted_{name}", Path(__file__).with_name(f"{name}.py"))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        for value in vars(module).values():
            for mark in getattr(value, "pytestmark", ()):
                if value.__name__.endswith("is_caught"):
                    of = "importance" if "importance" in value.__name__ else kind
                    plugins = (each for row in mark.args[1] for each in row if not isinstance(each, str))
                    found.setdefault(of, set()).update(type(plugin) for plugin in plugins)
        del sys.modules[spec.name]
    counts = {kind: len(plugins) for kind, plugins in found.items()}
    assert counts == WRONG
    assert sum(counts[kind] for kind in ("bias", "importance", "policy")) >= 70


def variance() -> Any:
    return discovery.build("bias", "variance")


def test_an_exemption_needs_a_known_name_and_a_reason() -> None:
    report = check_plugin("bias", variance(), skip={"experts": "written for dense models"}, only=["experts", "shape"])
    assert report.skipped["experts"] == "written for dense models"
    assert report.ran == report.passed == ("shape",)
    assert "1 of 26 checks ran" in str(report)
    assert "skipped experts: written for dense models" in str(report)
    with pytest.raises(ValueError, match="without a reason"):
        check_plugin("bias", variance(), skip={"experts": " "})
    with pytest.raises(ValueError, match="Did you mean 'experts'"):
        check_plugin("bias", variance(), skip={"expert": "a reason"})
    with pytest.raises(ValueError, match="no check 'speed'"):
        check_plugin("bias", variance(), only=["speed"])


def test_what_cannot_be_checked_is_refused() -> None:
    with pytest.raises(ValueError, match="must be one of bias, importance"):
        check_plugin("scorer", variance())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a model is for adapters"):
        check_plugin("bias", variance(), model=lambda: tiny_model("llama"))


@dataclass(frozen=True, kw_only=True)
class Exempt(Good):
    """Says itself what it cannot keep."""

    exemptions = {"distinguishes-neurons": "the same for all neurons, by definition"}  # noqa: RUF012


def test_a_plugin_declares_its_exemptions() -> None:
    bare = check_plugin("bias", Good(), only=["distinguishes-neurons"])
    assert "distinguishes-neurons" in bare.failures
    report = check_plugin("bias", Exempt())
    assert report.skipped["distinguishes-neurons"] == "the same for all neurons, by definition"
    assert "skipped distinguishes-neurons: the same" in str(report)


@pytest.mark.parametrize(
    ("exemptions", "words"), [({"no-such": "why"}, "no check 'no-such'"), ({"finite": " "}, "without a reason")]
)
def test_an_exemption_needs_a_check_and_a_reason(exemptions: dict[str, str], words: str) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Wrong(Good):
        """Bad."""

    Wrong.exemptions = exemptions
    with pytest.raises(ValueError, match=words):
        check_plugin("bias", Wrong())
