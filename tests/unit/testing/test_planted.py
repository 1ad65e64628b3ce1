"""The model with planted neurons: what works finds all of them, what looks at size or chance finds hardly any."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from fairprune_framework import discovery
from fairprune_framework.api import BiasScorer, ImportanceScorer, Needs, Observation, SelectionPolicy, SiteContext, Statistic
from fairprune_framework.api.types import Budget, Plan
from fairprune_framework.auditing.audit import audit
from fairprune_framework.auditing.demand import Demand, selecting
from fairprune_framework.contrasts.alignment import align_all, vocabularies
from fairprune_framework.models.architecture import Architecture, recognise
from fairprune_framework.models.confirmation import confirm
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.selection.planning import make_plan, policy_context
from fairprune_framework.selection.scoring import score
from fairprune_framework.surgery.masking import masked
from fairprune_framework.testing.planted import Planted, planted_model

COUNT = 4


@dataclass(frozen=True, kw_only=True)
class SumOfSquares(Statistic):
    """Two rows a contrast: sum of squared activations over all tokens of all variants, and their number."""

    name: str = "sum-of-squares"

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        seen = obs.mask.unsqueeze(-1)
        squares = (obs.acts["neuron"].double().square() * seen).sum((1, 2))
        return {"moments": torch.stack([squares, seen.sum((1, 2)).double().expand_as(squares)], 1)}


@dataclass(frozen=True, kw_only=True)
class Norm(BiasScorer):
    """Root mean square activation: knows size, not bias."""

    def needs(self) -> Needs:
        return Needs(statistics=(SumOfSquares(),))

    def score(self, at: SiteContext) -> Tensor:
        squares, tokens = at.sums["sum-of-squares.moments"]
        return (squares / tokens).sqrt()


@dataclass(frozen=True, kw_only=True)
class InverseNorm(Norm):
    """The quietest first."""

    def score(self, at: SiteContext) -> Tensor:
        return 1 / (1 + super().score(at))


@dataclass(frozen=True, kw_only=True)
class Chance(Norm):
    """Knows nothing."""

    def score(self, at: SiteContext) -> Tensor:
        return torch.rand(at.site.units, generator=at.generator, dtype=torch.float64)


def plan_with(case: Planted, bias: BiasScorer, weight: float, seed: int = 0, normalisation: str = "minmax") -> Plan:
    architecture = recognise(case.model)
    aligned, _ = align_all(case.contrasts, Encoder(case.tokenizer))
    values = {category: len(names) for category, names in vocabularies(case.contrasts).items()}
    importance = discovery.build("importance", "max-abs-weight")
    policy = discovery.build("policy", "uniform", {"weight": weight, "normalisation": normalisation})
    assert isinstance(importance, ImportanceScorer)
    assert isinstance(policy, SelectionPolicy)
    demand = Demand.of([bias, importance], len(architecture.sites))
    statistics, _ = audit(case.model, architecture, selecting(aligned), values, demand, accelerator="cpu")
    scores = score(statistics, case.model, architecture, bias, importance, ("bias", "importance"), seed)
    context = policy_context("zero", 0.05, lambda site: None, torch.Generator())
    budget = Budget.parse(f"{COUNT}/layer")
    return make_plan(scores, policy, budget, context, "policy", model="planted", fingerprint="", operator="zero")


@pytest.fixture(scope="module", params=[0, 1, 2])
def case(request: pytest.FixtureRequest) -> Planted:
    return planted_model(seed=request.param, count=COUNT)


@pytest.mark.parametrize(("weight", "normalisation"), [(1.0, "minmax"), (0.8, "minmax"), (1.0, "rank")])
def test_variance_finds_every_planted_neuron(case: Planted, weight: float, normalisation: str) -> None:
    bias = discovery.build("bias", "variance")
    assert isinstance(bias, BiasScorer)
    plan = plan_with(case, bias, weight, normalisation=normalisation)
    assert plan.count == COUNT * 3
    assert case.recall(plan.sites) == 1.0


@pytest.mark.parametrize("bias", [Norm(), InverseNorm()], ids=["norm", "inverse-norm"])
@pytest.mark.parametrize("weight", [1.0, 0.8])
def test_norm_finds_hardly_any(case: Planted, bias: BiasScorer, weight: float) -> None:
    plan = plan_with(case, bias, weight)
    assert plan.count == COUNT * 3
    assert case.recall(plan.sites) < 0.2


def test_chance_finds_hardly_any(case: Planted) -> None:
    found = [case.recall(plan_with(case, Chance(), 1.0, seed).sites) for seed in range(5)]
    assert sum(found) / len(found) < 0.2


def activation_norms(case: Planted, architecture: Architecture) -> dict[str, Tensor]:
    found: dict[str, list[Tensor]] = {name: [] for name in architecture.sites}

    def keep(site, tap, values, rows):  # type: ignore[no-untyped-def]
        found[site.name].append(values.double().square())

    with torch.no_grad(), architecture.adapter.tap(case.model, list(architecture.sites.values()), frozenset({"neuron"}), keep):
        for text in {variant.text for contrast in case.contrasts for variant in contrast.variants}:
            case.model(input_ids=torch.tensor([case.tokenizer(text).input_ids]))
    return {name: torch.cat(values).mean(0).sqrt() for name, values in found.items()}


def test_decoys_are_as_many_and_as_loud(case: Planted) -> None:
    architecture = recognise(case.model)
    assert confirm(case.model, architecture) == []
    assert set(case.planted) == set(case.decoys) == set(architecture.sites)
    for name, norm in activation_norms(case, architecture).items():
        planted, decoys = list(case.planted[name]), list(case.decoys[name])
        assert len(planted) == len(decoys) == COUNT
        assert not set(planted) & set(decoys)
        torch.testing.assert_close(norm[planted], norm.median().expand(COUNT), rtol=1e-4, atol=0)
        torch.testing.assert_close(norm[decoys], norm.median().expand(COUNT), rtol=1e-4, atol=0)


@torch.no_grad()
def divergence(case: Planted) -> float:
    """Mean over contrasts of H(mean p) - mean H(p) at the last token, written out."""
    found = []
    for contrast in case.contrasts:
        rows = [case.model(input_ids=torch.tensor([case.tokenizer(v.text).input_ids])).logits[0, -1] for v in contrast.variants]
        p = torch.stack(rows).double().softmax(-1)
        found.append(-(p.mean(0) * p.mean(0).log()).sum() + (p * p.log()).sum(-1).mean())
    return torch.stack(found).mean().item()


def test_the_planted_neurons_are_what_the_model_says_about_attributes(case: Planted) -> None:
    architecture = recognise(case.model)
    before = divergence(case)
    with masked(case.model, architecture, case.planted):
        without_planted = divergence(case)
    with masked(case.model, architecture, case.decoys):
        without_decoys = divergence(case)
    assert without_planted < 0.05 * before
    assert abs(without_decoys - before) < 0.05 * before


def test_the_same_seed_gives_the_same_model() -> None:
    one, two, other = planted_model(seed=3), planted_model(seed=3), planted_model(seed=4)
    assert one.planted == two.planted != other.planted
    for first, second in zip(one.model.state_dict().values(), two.model.state_dict().values(), strict=True):
        assert torch.equal(first, second)


@pytest.fixture(scope="module")
def swollen() -> Planted:
    return planted_model(seed=0, count=COUNT, massive=COUNT)


def test_massive_activations_do_nothing(swollen: Planted) -> None:
    assert {len(units) for units in swollen.massive.values()} == {COUNT}
    for name, units in swollen.massive.items():
        assert not set(units) & {*swollen.planted[name], *swollen.decoys[name]}
    architecture = recognise(swollen.model)
    ids = swollen.tokenizer(
        [contrast.variants[0].text for contrast in swollen.contrasts[:6]], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        before = swollen.model(**ids).logits
        with masked(swollen.model, architecture, swollen.massive):
            after = swollen.model(**ids).logits
    assert (after - before).abs().max() < 0.01 * before.abs().max()


@pytest.mark.parametrize(
    ("name", "least", "most"), [("variance", 0.0, 0.1), ("attribution", 0.9, 1.0), ("output-variance", 0.5, 1.0)]
)
def test_raw_variance_takes_massive_activations_for_bias(swollen: Planted, name: str, least: float, most: float) -> None:
    """As it does in real models; scores that look at what is written do not."""
    bias = discovery.build("bias", name)
    assert isinstance(bias, BiasScorer)
    plan = plan_with(swollen, bias, 1.0)
    assert least <= swollen.recall(plan.sites) <= most
    taken = sum(len(set(plan.sites[site]) & set(units)) for site, units in swollen.massive.items())
    assert (taken >= 0.9 * 3 * COUNT) == (name == "variance")
