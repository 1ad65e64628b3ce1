"""`fairprune plugins`: what is installed, loaded or not, broken or not; showing and checking one by its name."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from fairprune_framework import discovery
from fairprune_framework.api import BiasScorer, Needs


@dataclass(frozen=True, kw_only=True)
class Wanting(BiasScorer):
    """Has an option without a default."""

    share: float

    def score(self, at: Any) -> Any:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Named(BiasScorer):
    """Has the name of a policy, and talks."""

    def needs(self) -> Needs:
        print("asked")
        return Needs()

    def score(self, at: Any) -> Any:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Abstract(BiasScorer):
    """Does not say how to score."""


ASKED_FOR = {
    "bias": (
        20,
        "variance output-variance mean-abs-difference token-abs-difference signed-difference paired-effect eta-squared d-prime "
        "sign-rate mutual-information paired-auc expertise steering-projection vocabulary-spread snip-difference attribution "
        "integrated-gradients gate-up-difference linear-probe specificity",
    ),
    "importance": (
        15,
        "max-abs-weight peak-to-peak weight-variance product-of-norms l2-norm activation-norm wanda input-variance "
        "peak-to-peak-hybrid taylor fisher snip obs output-norm random",
    ),
    "policy": (
        16,
        "uniform global standardised-global protected-global set-difference two-stage pareto bias-proportional outlier-weighted "
        "category-intersection stable greedy knapsack annealing random gates",
    ),
}
"""Kind -> how many are shipped at least, and the names of published methods among them."""


def test_plugins_list(fairprune: Any) -> None:
    answer = fairprune("plugins", "list")
    assert answer.code == 0
    header, *rows = answer.out.splitlines()
    assert header.split() == ["kind", "name", "distribution", "version", "state"]
    cells = [row.split() for row in rows]
    assert {("bias", "variance"), ("importance", "peak-to-peak"), ("policy", "uniform"), ("architecture", "experts")} <= {
        (row[0], row[1]) for row in cells
    }
    assert {row[4] for row in cells} == {"not"}  # "not loaded"


def test_plugins_list_load_and_json(fairprune: Any) -> None:
    answer = fairprune("plugins", "list", "--load", "--json")
    rows = json.loads(answer.out)
    assert {row["state"] for row in rows if row["kind"] != "recipe"} == {"ok"}
    assert all(row["distribution"] == "fairprune_framework" for row in rows if row["name"] in ("variance", "glu", "default"))


def test_every_method_asked_for_is_shipped(fairprune: Any) -> None:
    shipped: dict[str, set[str]] = {}
    for row in json.loads(fairprune("plugins", "list", "--json").out):
        if row["distribution"] == "fairprune_framework":
            shipped.setdefault(row["kind"], set()).add(row["name"])
    for kind, (least, names) in ASKED_FOR.items():
        assert set(names.split()) - shipped[kind] == set(), kind
        assert len(shipped[kind]) >= least, kind


@pytest.mark.parametrize(("kind", "name", "option"), [("bias", "variance", "relative"), ("policy", "random", "matched")])
def test_near_relatives_are_options(kind: str, name: str, option: str, fairprune: Any) -> None:
    told = json.loads(fairprune("plugins", "show", kind, name, "--json").out)["options"][option]
    assert told == {"type": "true or false", "default": False}


def test_a_broken_plugin_breaks_no_list(fairprune: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    real = discovery.offers

    def more() -> Any:
        return [*real(), (metadata.EntryPoint("shaky", "no_such_module:Shaky", "fairprune.bias_scorers"), "unknown", "0")]

    monkeypatch.setattr(discovery, "offers", more)
    answer = fairprune("plugins", "list", "--load")
    assert answer.code == 0
    assert "bias 'shaky' of unknown 0 cannot be loaded from no_such_module:Shaky: ModuleNotFoundError" in answer.out
    assert next(line for line in answer.out.splitlines() if " variance " in line).endswith("ok")


def test_plugins_show(fairprune: Any) -> None:
    answer = fairprune("plugins", "show", "bias", "paired-effect", "--json")
    assert answer.code == 0
    found = json.loads(answer.out)
    assert found["options"] == {"fdr": {"default": 1.0, "type": "a number"}}
    assert (found["statistics"], found["needs"]) == (["value-deviation", "deviation-squares"], [])
    assert list(found["exemptions"]) == ["zero-difference", "precision", "padding-invariance"]
    assert "fairprune_effects" in found["source"]
    text = fairprune("plugins", "show", "importance", "wanda").out
    assert "statistics  square-sum" in text
    assert "needs       weights" in text


def test_a_name_that_one_kind_alone_has_needs_no_kind(fairprune: Any) -> None:
    assert fairprune("plugins", "show", "wanda") == fairprune("plugins", "show", "importance", "wanda")
    assert json.loads(fairprune("plugins", "show", "fairprune_framework:knapsack", "--json").out)["kind"] == "policy"
    checked = fairprune("plugins", "check", "two-stage", "--option", "gamma=0.5", "--skip", "site-order", "--json")
    assert (checked.code, json.loads(checked.out)["kind"]) == (0, "policy")


@pytest.mark.parametrize(
    "between", [("bias", "--json", "variance"), ("--json", "bias", "variance"), ("variance", "--json"), ("--json", "variance")]
)
def test_options_stand_anywhere_beside_kind_and_name(between: tuple[str, ...], fairprune: Any) -> None:
    assert fairprune("plugins", "show", *between) == fairprune("plugins", "show", "bias", "variance", "--json")


@pytest.mark.parametrize(
    "words",
    [
        ("policy", "--option", "gamma=0.5", "--json", "two-stage"),
        ("--option=gamma=0.5", "policy", "--json", "two-stage"),
        ("--option", "gamma=0.5", "two-stage", "--json"),
    ],
)
def test_values_of_options_are_neither_kind_nor_name(
    words: tuple[str, ...], fairprune: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Any] = []

    def check(kind: str, plugin: Any, **_: Any) -> Any:
        built.append((kind, plugin.gamma))
        raise ValueError("enough")

    monkeypatch.setattr("fairprune_framework.testing.contracts.check_plugin", check)
    assert fairprune("plugins", "check", *words).errors == ["fairprune: error: enough"]
    assert built == [("policy", 0.5)]
    assert fairprune("plugins", "check", *words, "more").code == 2
    assert fairprune("plugins", "check", "two-stage", "--option").code == 2


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("random", "'random' is a plugin of 2 kinds: importance and policy. Say which, as `importance random`"),
        ("varianec", "(bias, importance, policy, architecture) is named 'varianec'. Did you mean 'variance'?"),
        ("elsewhere:wanda", "no importance named 'elsewhere:wanda'. Did you mean 'wanda'?"),
        ("policy", "is named 'policy'. A name follows its kind."),
        ("default", "(bias, importance, policy, architecture) is named 'default'."),  # a recipe
    ],
)
@pytest.mark.parametrize("command", ["show", "check"])
def test_a_name_of_several_kinds_or_of_none(command: str, name: str, words: str, fairprune: Any) -> None:
    answer = fairprune("plugins", command, name)
    assert (answer.code, answer.out, len(answer.errors)) == (2, "", 1)
    assert words in answer.err


def test_kinds_are_told_apart_by_distribution(fairprune: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    known = discovery.offers
    point = metadata.EntryPoint("knapsack", f"{__name__}:Named", "fairprune.bias_scorers")
    monkeypatch.setitem(sys.modules, __name__, SimpleNamespace(Named=Named))
    monkeypatch.setattr(discovery, "offers", lambda: [*known(), (point, "toys", "1")])
    assert "is a plugin of 2 kinds: bias and policy" in fairprune("plugins", "show", "knapsack").err
    assert fairprune("plugins", "show", "toys:knapsack").out.startswith("bias 'knapsack' of toys 1")
    assert fairprune("plugins", "show", "fairprune_framework:knapsack").out.startswith("policy 'knapsack'")
    assert fairprune("plugins", "show", "bias", "knapsack").out.startswith("bias 'knapsack' of toys 1")
    answer = fairprune("plugins", "show", "bias", "knapsack", "--json")
    assert (json.loads(answer.out)["distribution"], set(answer.errors)) == ("toys", {"asked"})


def test_plugins_check_takes_options_and_exemptions(fairprune: Any) -> None:
    answer = fairprune("plugins", "check", "policy", "two-stage", "--option", "gamma=0.5", "--skip", "site-order", "--json")
    assert answer.code == 0
    report = json.loads(answer.out)
    assert report["skipped"] == {"site-order": "left out by --skip"}
    assert len(report["passed"]) == len(report["checks"]) - 1
    for wrong in (["--option", "gamma"], ["--option", "gamma=2"], ["--option", "gama=0.5"], ["--skip", "site-ordr"]):
        assert fairprune("plugins", "check", "policy", "two-stage", *wrong).code == 2


def test_help_beside_a_plugin_is_that_of_the_plugin(fairprune: Any) -> None:
    answer = fairprune("score", "somewhere", "--bias", "variance", "--policy=two-stage", "--help")
    assert answer.code == 0, answer.err
    assert "bias 'variance' of fairprune_framework" in answer.out
    assert "option      relative: true or false, default False" in answer.out
    assert "policy 'two-stage' of fairprune_framework" in answer.out
    assert "--bias.OPTION VALUE" in answer.out
    unknown = fairprune("run", "--bias", "varianec", "--help")
    assert unknown.code == 2
    assert "Did you mean 'variance'?" in unknown.err


def test_a_plugin_that_needs_an_option_is_shown_as_such(fairprune: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    known = discovery.offers
    points = [metadata.EntryPoint(name, f"{__name__}:{name}", "fairprune.bias_scorers") for name in ("Wanting", "Abstract")]
    monkeypatch.setitem(sys.modules, __name__, SimpleNamespace(Wanting=Wanting, Abstract=Abstract))
    monkeypatch.setattr(discovery, "offers", lambda: [*known(), *((point, "toys", "1") for point in points)])
    answer = fairprune("plugins", "list", "--load", "--json")
    states = {row["name"]: row["state"] for row in json.loads(answer.out)}
    assert (states["Wanting"], states["Abstract"]) == ("needs share", "broken")
