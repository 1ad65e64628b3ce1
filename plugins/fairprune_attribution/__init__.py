"""Bias by output attribution: how much a divergence of the model's answers would fall, to first order, if the neuron were zeroed.

attribution_i = sum over variants and tokens of a_i dJ/da_i, averaged over contrasts, where a_i is the neuron's activation and J the
objective: the generalised Jensen-Shannon divergence of the variants' next-token distributions (nats), or the spread of the log
probabilities of whole sentences. Signed: below zero, zeroing the neuron would raise J. Source: first-order Taylor criterion (Molchanov
et al. 2019) applied to a fairness objective, this project, docs/method/attribution.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fairprune_framework.api import BiasScorer, Needs, Observation, Outputs, Pass, SiteContext, Statistic, generalised_js


@dataclass(frozen=True, kw_only=True)
class NextTokenDivergence:
    """Generalised JS divergence of the next-token distributions at the last token, nats."""

    def __call__(self, outputs: Outputs) -> Tensor:
        """(C, V, vocab) logits -> (C,)."""
        return generalised_js(outputs.logits, outputs.mask.any(-1))


@dataclass(frozen=True, kw_only=True)
class SentenceGap:
    """Standard deviation over the variants of the log probability of the whole text, nats; for a pair half of |difference|."""

    def __call__(self, outputs: Outputs) -> Tensor:
        """(C, V, T, vocab) logits -> (C,)."""
        log_p = torch.log_softmax(outputs.logits[:, :, :-1].float(), -1)
        token = log_p.gather(-1, outputs.tokens[:, :, 1:].unsqueeze(-1)).squeeze(-1)
        total_CV = (token.double() * outputs.mask[:, :, 1:]).sum(-1)
        present_CV = outputs.mask.any(-1)
        count_C1 = present_CV.sum(1, keepdim=True)
        mean_C1 = (total_CV * present_CV).sum(1, keepdim=True) / count_C1
        variance_C = ((total_CV - mean_C1).square() * present_CV).sum(1) / count_C1.squeeze(1)
        return (variance_C + 1e-12).sqrt()


OBJECTIVES: Mapping[str, Pass] = {
    "next-token": Pass(objective=NextTokenDivergence()),
    "sentence": Pass(objective=SentenceGap(), logits="all"),
}


@dataclass(frozen=True, kw_only=True)
class ActivationTimesGradient(Statistic):
    """Two rows a contrast: the sum over variants and tokens of activation x gradient, and 1 if the site was reached."""

    name: str = "activation-times-gradient"
    objective: Literal["next-token", "sentence"] = "next-token"

    def passes(self, layers: int) -> Sequence[Pass]:
        """One forward and backward of every contrast."""
        return (OBJECTIVES[self.objective],)

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        """See `Statistic.summands`. Output `product`: (C, 2, N)."""
        mask = obs.mask.unsqueeze(-1)
        product_CN = (obs.acts["neuron"].double() * obs.grads["neuron"].double() * mask).sum((1, 2))
        reached_CN = obs.mask.any(-1).any(-1).double().unsqueeze(-1).expand_as(product_CN)
        return {"product": torch.stack([product_CN, reached_CN], 1)}


@dataclass(frozen=True, kw_only=True)
class Attribution(BiasScorer):
    """Mean over contrasts of the statistic above. Unit: nats."""

    signed: ClassVar[bool] = True
    objective: Literal["next-token", "sentence"] = "next-token"
    """What is differentiated: the divergence of next-token distributions, or the gap of whole sentences' log probabilities."""

    def needs(self) -> Needs:
        """One gradient pass over the contrasts."""
        return Needs(statistics=(ActivationTimesGradient(objective=self.objective),))

    def score(self, at: SiteContext) -> Tensor:
        """See `BiasScorer.score`."""
        product_N, reached_N = at.sums["activation-times-gradient.product"]
        return product_N / reached_N.clamp_min(1)
