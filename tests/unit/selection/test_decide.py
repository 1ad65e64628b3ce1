"""A policy that asks for bootstrap replicates is given the bias scores of resampled clusters, and an audit that kept them."""

from __future__ import annotations

import json
import sys
import types
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

import fairprune_framework as fp
from fairprune_framework import discovery
from fairprune_framework.api.interfaces import Budget, Choice, Needs, PolicyContext, SelectionPolicy
from fairprune_framework.api.types import Scores
from fairprune_framework.errors import UserError
from fairprune_framework.testing.planted import Planted, planted_model

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
