"""A policy that asks for bootstrap replicates is given the bias scores of resampled clusters, and an audit that kept them."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import fairprune_framework as fp
from fairprune_framework import discovery
from fairprune_framework.api.interfaces import Budget, Choice, Needs, PolicyContext, SelectionPolicy
from fairprune_framework.api.types import Scores
from fairprune_framework.errors import RunFolderError, UserError
from fairprune_framework.models.architecture import recognise
from fairprune_framework.selection import decide
from fairprune_framework.surgery.slices import weights_of
from fairprune_framework.testing.planted import Planted, planted_model
from fairprune_framework.testing.tiny import tiny_model

SEEN: list[dict[str, torch.Tensor]] = []


@dataclass(frozen=True, kw_only=True)
class OftenHighest(SelectionPolicy):
    """The units that are among the highest of all in most replicates."""

    def needs(self) -> Needs:
        return Needs(replicates=12)

    def select(self, scores: Scores, budget: Budget, context: PolicyContext) -> Choice:
        wanted = budget.units(scores.sites)
        votes = {name: torch.zeros(site.units) for name, site in scores.sites.items()}
        SEEN.clear()
        for drawn in context.replicates():
            SEEN.append(dict(drawn.bias))
            for name, importance in drawn.importance.items():
                assert torch.equal(importance, scores.importance[name])
            lowest = torch.cat(list(drawn.bias.values())).topk(wanted).values.min()
            for name, found in drawn.bias.items():
                votes[name] += found >= lowest
        units = {name: torch.sort(found, descending=True, stable=True).indices[:wanted] for name, found in votes.items()}
        return Choice(units=units, order={name: votes[name][chosen] for name, chosen in units.items()})


@dataclass(frozen=True, kw_only=True)
class Probing(SelectionPolicy):
    """Takes the most biased units, and remembers what the probe says of none and of them."""

    def needs(self) -> Needs:
        return Needs(probe=True)

    def select(self, scores: Scores, budget: Budget, context: PolicyContext) -> Choice:
        assert context.probe is not None
        lowest = torch.cat(list(scores.bias.values())).topk(budget.units(scores.sites)).values.min()
        choice = Choice(units={name: (bias >= lowest).nonzero().flatten() for name, bias in scores.bias.items()})
        PROBED[context.operator] = (context.probe(Choice(units={})).divergence, context.probe(choice).divergence)
        return choice


PROBED: dict[str, tuple[float, float]] = {}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = discovery.offers
    module: Any = types.ModuleType("often_highest")
    module.OftenHighest, module.Probing = OftenHighest, Probing
    monkeypatch.setitem(sys.modules, "often_highest", module)

    def more() -> Any:
        names = {"often-highest": "OftenHighest", "probing": "Probing"}
        points = [
            metadata.EntryPoint(name, f"often_highest:{cls}", "fairprune.selection_policies") for name, cls in names.items()
        ]
        return [*real(), *((point, "often", "1.0") for point in points)]

    monkeypatch.setattr(discovery, "offers", more)


@pytest.fixture(scope="module")
def case() -> Planted:
    return planted_model(count=4)


def audited(case: Planted, folder: Path, policy: str) -> Any:
    recipe = fp.Recipe(bias="variance", importance="max-abs-weight", policy=policy, budget="12n", operator="zero")  # type: ignore[arg-type]
    given = {"model": case.model, "tokenizer": case.tokenizer, "prompts": case.contrasts}
    return fp.score(fp.audit(recipe=recipe, output=folder, calibration_tokens=16, calibration_documents=8, **given))


@pytest.mark.usefixtures("installed")
def test_a_policy_sees_the_scores_of_resampled_clusters(case: Planted, tmp_path: Path) -> None:
    run = fp.plan(audited(case, tmp_path / "run", "often-highest"))
    assert len(SEEN) == 12
    name = max(case.planted, key=lambda site: len(case.planted[site]))
    drawn = torch.stack([bias[name] for bias in SEEN])
    assert (drawn.std(0) > 0).any()  # clusters differ
    mean = drawn.mean(0)
    torch.testing.assert_close(mean, run.read_scores().bias[name], rtol=0.5, atol=float(mean.max()) * 0.2)
    planned = {(site, unit) for site, units in run.read_plan().sites.items() for unit in units}
    planted = {(site, unit) for site, units in case.planted.items() for unit in units}
    assert len(planned) == 12
    assert len(planned & planted) >= 6
    first = [{name: value.clone() for name, value in bias.items()} for bias in SEEN]
    fp.plan(run, overwrite=True)
    assert all(torch.equal(a[name], b[name]) for a, b in zip(first, SEEN, strict=True) for name in a)


@pytest.mark.usefixtures("installed")
def test_an_audit_without_clusters_is_refused(case: Planted, tmp_path: Path) -> None:
    run = audited(case, tmp_path / "run", "uniform")
    assert json.loads((run.folder / "statistics.json").read_text())["cluster_counts"] == []
    with pytest.raises(UserError, match="clusters"):
        fp.plan(run, policy="often-highest")
    assert not (run.folder / "plan.json").exists()


@pytest.mark.usefixtures("installed")
def test_a_policy_probes_what_the_operator_will_do(case: Planted, tmp_path: Path) -> None:
    """Of the planted neurons zeroing takes nearly all divergence, a factor of one half a part of it."""
    PROBED.clear()
    run = audited(case, tmp_path / "run", "probing")
    for operator, factor in (("zero", None), ("scale", 0.5), ("mean", None)):
        fp.plan(run, operator=operator, **({} if factor is None else {"factor": factor}), overwrite=True)
    before = {operator: none for operator, (none, _) in PROBED.items()}
    after = {operator: chosen / before[operator] for operator, (_, chosen) in PROBED.items()}
    assert len(set(before.values())) == 1
    assert after["zero"] < 0.1
    assert 0.1 < after["scale"] < 0.9
    assert after["mean"] not in (after["zero"], after["scale"])


# -- without an audit --------------------------------------------------------------------------------------------------------

MODEL: Any = tiny_model("llama")
ARCHITECTURE = recognise(MODEL)


class Text:
    """Statistics of nothing: whatever is asked for is empty."""

    cluster_counts = ()

    def sites(self) -> set[str]:
        return {"elsewhere"}

    def of(self, *asked: Any) -> dict[str, Any]:
        return {}

    def count(self, *asked: Any) -> int:
        return 3

    def observed(self, *asked: Any) -> int:
        return 2

    def categories_of(self, stream: str) -> tuple[str, ...]:
        return ()


@dataclass(frozen=True, kw_only=True)
class Keeping(SelectionPolicy):
    """Keeps the contexts of the sites, and takes a unit of each."""

    weights: bool = False

    def needs(self) -> Needs:
        return Needs(weights=self.weights)

    def select(self, scores: Scores, budget: Budget, context: PolicyContext) -> Choice:
        KEPT.append((context, {name: context.at(name) for name in scores.sites}))
        return Choice(units={name: torch.tensor([1]) for name in scores.sites})


KEPT: list[tuple[PolicyContext, dict[str, Any]]] = []


def selected(policy: SelectionPolicy, operator: str = "zero", factor: str | None = None) -> Any:
    recipe = fp.Recipe(operator=operator, factor=factor, budget="2n", max_perplexity_increase=0.25)  # type: ignore[arg-type]
    return SimpleNamespace(
        recipe=recipe,
        plugins=SimpleNamespace(policy=policy, label=lambda kind: f"x:{kind}"),
        loaded=SimpleNamespace(model=MODEL, architecture=ARCHITECTURE, name="a model", fingerprint="f"),
        statistics=Text,
        calibration=lambda: SimpleNamespace(scoring="the scoring half"),
        prompts=SimpleNamespace(aligned=[], values={"age": 2}),
        max_tokens=lambda: 77,
        means={name: torch.full((48, 1), 4.0) for name in ARCHITECTURE.sites},
        where="the folder",
    )


def scores_of_one() -> Scores:
    ones = {name: torch.ones(site.units, dtype=torch.float64) for name, site in ARCHITECTURE.sites.items()}
    seen = {name: torch.ones(site.units, dtype=torch.bool) for name, site in ARCHITECTURE.sites.items()}
    return Scores(sites=ARCHITECTURE.sites, bias=ones, importance=ones, by_category={}, observed=seen)


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Evaluators and probes are made up: what they were made of is kept."""
    made: list[Any] = []
    monkeypatch.setattr(decide, "MaskedEvaluator", lambda *given, **more: made.append((given, more)) or "the evaluator")
    monkeypatch.setattr(decide, "probe_of", lambda *given: given)
    return made


@pytest.mark.parametrize("weights", [True, False])
def test_a_policy_sees_weights_where_it_asked_for_them(weights: bool) -> None:
    KEPT.clear()
    plan = decide.plan_of(selected(Keeping(weights=weights)), scores_of_one())
    ((context, seen),) = KEPT
    assert (context.operator, context.max_cost, context.probe) == ("zero", 0.25, None)
    assert (plan.model, plan.fingerprint, plan.operator, plan.factor, plan.count) == ("a model", "f", "zero", None, 2)
    for name, at in seen.items():
        expected = weights_of(MODEL, ARCHITECTURE.sites[name]) if weights else {}
        assert at.weights.keys() == expected.keys()
        assert all(at.weights[role].equal(expected[role]) for role in expected)
        assert (at.site.name, at.category, at.count, at.observed.tolist()) == (name, None, 3, [2] * 48)


def test_a_probe_is_made_of_what_the_operator_will_do(unmeasured: list[Any]) -> None:
    for operator, factor, expected in (("zero", None, 0.0), ("scale", "0.5", 0.5), ("mean", None, 0.0)):
        unmeasured.clear()
        selection = selected(Keeping(), operator, factor)
        services = decide.services(selection)
        assert services.probe is not None
        assert unmeasured == []  # not before one is asked for
        of_one, of_all = services.probe("age"), services.probe(None)
        for probe, category in ((of_one, "age"), (of_all, None)):
            evaluator, multiplier, asked, means = probe  # type: ignore[misc]
            assert (evaluator, multiplier, asked) == ("the evaluator", expected, category)
            assert (means is None) == (operator != "mean")
            assert means is None or means() is selection.means
        ((given, more),) = unmeasured  # one evaluator for both
        assert given == (MODEL, ARCHITECTURE, [], {"age": 2})
        assert more == {"documents": "the scoring half", "max_tokens": 77}


def test_a_factor_is_searched_by_a_probe_of_all_categories_where_it_is_auto(
    unmeasured: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[Any] = []
    monkeypatch.setattr(decide, "make_plan", lambda *given, **more: searched.append((more["search"], more["means"])))
    for operator, factor in (("scale", "auto"), ("scale", "0.5"), ("zero", None), ("mean", None)):
        decide.plan_of(selected(Keeping(), operator, factor), scores_of_one())
    assert [search is not None for search, _ in searched] == [True, False, False, False]
    assert searched[0][0] == ("the evaluator", 0.0, None, None)
    assert [means is not None for _, means in searched] == [False, False, False, True]
    assert len(unmeasured) == 1


def test_statistics_of_another_model_are_refused() -> None:
    with pytest.raises(RunFolderError, match="the statistics in the folder hold 'elsewhere', which the model does not have"):
        decide.scores_of(selected(Keeping()))


def test_a_selection_is_made_by_name() -> None:
    given: list[Callable[[], Any]] = [dict] * 8
    with pytest.raises(TypeError, match="positional"):
        decide.Selection(*given)  # type: ignore[misc, call-arg]
