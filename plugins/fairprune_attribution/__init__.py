"""Bias by output attribution: how much a divergence of the model's answers would fall, to first order, if the neuron were zeroed.

attribution_i = sum over variants and tokens of a_i dJ/da_i, averaged over contrasts, where a_i is the neuron's activation and J the
objective: the generalised Jensen-Shannon divergence of the variants' next-token distributions (nats), the spread of the log
probabilities of whole sentences, a weighted sum of both, each as a share of its own mean, or by how much a stereotyping sentence is
likelier than its counterpart, or whether it is likelier, softened, pushed towards neither. Signed: below zero, zeroing the neuron
would raise J. Source: first-order Taylor criterion (Molchanov et al. 2019) applied to a fairness objective, this project,
docs/method/attribution.md. Its integrated form: IG2 (ICLR 2024), docs/method/integrated-gradients.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fairprune_framework.api import (
    BiasScorer,
    Needs,
    NextTokenDivergence,
    Observation,
    Outputs,
    Pass,
    SiteContext,
    Statistic,
)


@dataclass(frozen=True, kw_only=True)
class SentenceGap:
    """Standard deviation over the variants of the log probability of the whole text, nats; for a pair half of |difference|."""

    def __call__(self, outputs: Outputs) -> Tensor:
        """(C, V, T, vocab) logits -> (C,)."""
        total_CV = sentence_log_probabilities(outputs)
        present_CV = outputs.mask.any(-1)
        count_C1 = present_CV.sum(1, keepdim=True)
        mean_C1 = (total_CV * present_CV).sum(1, keepdim=True) / count_C1
        variance_C = ((total_CV - mean_C1).square() * present_CV).sum(1) / count_C1.squeeze(1)
        return (variance_C + 1e-12).sqrt()


@dataclass(frozen=True, kw_only=True)
class StereotypeGap:
    """log p of the stereotyping text - log p of its counterpart, nats, signed; 0 where a contrast names neither.

    Zeroing what has a positive share moves the preference towards the counterpart, on average over the contrasts.
    """

    shared: bool = False
    """Of the tokens that both texts share behind the first difference alone, as CrowS-Pairs scores them; else of the whole texts."""

    def __call__(self, outputs: Outputs) -> Tensor:
        """(C, V, T, vocab) logits -> (C,)."""
        if not self.shared:
            return (sentence_log_probabilities(outputs) * outputs.lean).sum(1)
        scored = outputs.unmodified()[:, :, 1:]
        return (outputs.token_log_p(scored).double().sum(-1) * outputs.lean).sum(1)


@dataclass(frozen=True, kw_only=True)
class SoftPreference:
    """sigmoid(gap / softness) - 1/2 for the signed gap above: whether the stereotyping text is likelier, softened; in (-1/2, 1/2).

    Its mean over contrasts is the distance of the stereotype share from 50 %, softened. Pairs near the edge, which could change
    sides, count most.
    """

    softness: float = 2.0
    """Nats: a pair with that gap counts 0.79 of one at the edge."""
    shared: bool = False
    """As of `StereotypeGap`."""

    def __call__(self, outputs: Outputs) -> Tensor:
        """(C, V, T, vocab) logits -> (C,)."""
        return (StereotypeGap(shared=self.shared)(outputs) / self.softness).sigmoid() - 0.5


def sentence_log_probabilities(outputs: Outputs) -> Tensor:
    """(C, V, T, vocab) logits -> (C, V) float64, nats, of all tokens but the first."""
    return (outputs.token_log_p().double() * outputs.mask[:, :, 1:]).sum(-1)


Term = Literal["next-token", "sentence", "stereotype", "preference", "shared-preference"]
OBJECTIVES: Mapping[str, Pass] = {
    "next-token": Pass(objective=NextTokenDivergence()),
    "sentence": Pass(objective=SentenceGap(), logits="all"),
    "stereotype": Pass(objective=StereotypeGap(), logits="all"),
    "preference": Pass(objective=SoftPreference(), logits="all"),
    "shared-preference": Pass(objective=SoftPreference(shared=True), logits="all"),
}


Objective = Literal["next-token", "sentence", "stereotype", "preference", "shared-preference", "both"]


@dataclass(frozen=True, kw_only=True)
class ActivationTimesGradient(Statistic):
    """Sum over variants and tokens of activation x gradient, 1 if the site was reached, and the objective's value."""

    name: str = "activation-times-gradient"
    objective: Term = "next-token"

    def passes(self, layers: int) -> Sequence[Pass]:
        """One forward and backward of every contrast."""
        return (OBJECTIVES[self.objective],)

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        """See `Statistic.summands`. Outputs `product`: (C, 2, N), and `objective`: (C, 1, 1)."""
        assert obs.objective is not None
        product_CN = obs.product_sums()
        reached_C1 = obs.mask.any(-1).any(-1).double().unsqueeze(-1)
        value_C1 = obs.objective.unsqueeze(-1) * reached_C1
        return {"product": torch.stack([product_CN, reached_C1.expand_as(product_CN)], 1), "objective": value_C1.unsqueeze(1)}


@dataclass(frozen=True, kw_only=True)
class PathGradient(ActivationTimesGradient):
    """The same with the neurons scaled, summed over `steps` factors from 0 to 1 (midpoints)."""

    steps: int = 8
    scope: Literal["all", "layer"] = "all"

    def passes(self, layers: int) -> Sequence[Pass]:
        """A forward and backward for every factor; one layer scaled at a time, or all together."""
        pass_ = OBJECTIVES[self.objective]
        factors = [(k + 0.5) / self.steps for k in range(self.steps)]
        chosen = range(layers) if self.scope == "layer" else (None,)
        return [replace(pass_, scale=factor, layer=layer) for layer in chosen for factor in factors]


def _terms(objective: Objective, weight: float) -> list[tuple[Term, float]]:
    if objective == "both":
        return [("next-token", weight), ("sentence", 1 - weight)]
    return [(objective, 1.0)]


def _checked_weight(weight: float) -> None:
    if not 0 <= weight <= 1:
        raise ValueError(f"The 'weight' must be in [0, 1]. Got {weight} instead.")


def _slopes(objective: Term) -> ActivationTimesGradient:
    return ActivationTimesGradient(name=f"activation-times-gradient-{objective}", objective=objective)


def _share(mean_N: Tensor, at: SiteContext, objective: Term) -> Tensor:
    """A mean in the objective's unit as a share of the objective's own mean over the same contrasts."""
    slopes = _slopes(objective)
    return mean_N * at.sums[f"{slopes.name}.product"][1] / _value(slopes, at).clamp_min(TINY)


def _value(statistic: ActivationTimesGradient, at: SiteContext) -> Tensor:
    return at.sums[f"{statistic.name}.objective"][0, 0]


def _mixed(at: SiteContext, plugin: Attribution | IntegratedGradients, of: Callable[[Term], ActivationTimesGradient]) -> Tensor:
    """Means over the contrasts that reached a neuron, of one objective, or of both by their weights."""
    parts = []
    for name, weight in _terms(plugin.objective, plugin.weight):
        product_N, reached_N = at.sums[f"{of(name).name}.product"]
        mean_N = product_N / reached_N.clamp_min(1)
        if name in ("preference", "shared-preference"):  # a category that leans the other way is pushed the other way
            mean_N = mean_N * _value(of(name), at).sign()
        parts.append(weight * (_share(mean_N, at, name) if plugin.objective == "both" else mean_N))
    return torch.stack(parts).sum(0)


TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class Attribution(BiasScorer):
    """Mean over contrasts of activation x gradient. Unit: nats; with `both`, the share of the objectives."""

    signed: ClassVar[bool] = True
    objective: Objective = "next-token"
    """What is differentiated: the divergence of next-token distributions, the gap of whole sentences' log probabilities, both, the
    signed gap between stereotyping sentences and their counterparts, or the distance of their softened share from 50 %, by all tokens or
    by those that both sentences share."""
    weight: float = 0.5
    """With `both`: the part of next-token; the rest is sentence. Each counts as a share of its own mean."""

    def __post_init__(self) -> None:
        _checked_weight(self.weight)

    def needs(self) -> Needs:
        """One gradient pass over the contrasts for each objective."""
        return Needs(statistics=tuple(_slopes(name) for name, _ in _terms(self.objective, self.weight)))

    def score(self, at: SiteContext) -> Tensor:
        """See `BiasScorer.score`."""
        return _mixed(at, self, _slopes)


@dataclass(frozen=True, kw_only=True)
class IntegratedGradients(BiasScorer):
    """Activation x gradient, averaged along the path from silent neurons to what they are. Unit: as `Attribution`."""

    signed: ClassVar[bool] = True
    objective: Objective = "next-token"
    """As of `attribution`."""
    weight: float = 0.5
    """As of `attribution`."""
    steps: int = 8
    """Points of the path: as many gradient passes (with the scope `layer`, times the layers)."""
    scope: Literal["all", "layer"] = "all"
    """Scale the neurons of all layers together, or one layer at a time as IG2 does, which costs as many times more as layers."""

    def __post_init__(self) -> None:
        _checked_weight(self.weight)
        if self.steps < 1:
            raise ValueError(f"The 'steps' must be at least 1. Got {self.steps} instead.")

    def needs(self) -> Needs:
        """Gradient passes along the path; with `both` also one at its end, for the objectives' means."""
        terms = [name for name, _ in _terms(self.objective, self.weight)]
        ends = [_slopes(name) for name in terms] if self.objective == "both" else []
        return Needs(statistics=(*(self._path(name) for name in terms), *ends))

    def _path(self, objective: Term) -> PathGradient:
        name = f"path-gradient-{objective}-{self.scope}-{self.steps}"
        return PathGradient(name=name, objective=objective, steps=self.steps, scope=self.scope)

    def score(self, at: SiteContext) -> Tensor:
        """See `BiasScorer.score`."""
        return _mixed(at, self, self._path)
