"""Importance by Taylor expansion of the language-model loss: sum over calibration tokens of |a_i dNLL/da_i|.

Source: Molchanov et al. 2019, eq. 8, on activations; LLM-Pruner (Ma et al. 2023) uses the same criterion on weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fairprune_framework.api import ImportanceScorer, Needs, Observation, Outputs, Pass, SiteContext, Statistic


@dataclass(frozen=True, kw_only=True)
class NegativeLogLikelihood:
    """Sum over the tokens of a document of -log p(token | tokens before it), nats."""

    def __call__(self, outputs: Outputs) -> Tensor:
        """(C, 1, T, vocab) logits -> (C,)."""
        log_p = torch.log_softmax(outputs.logits[:, 0, :-1].float(), -1)
        token = log_p.gather(-1, outputs.tokens[:, 0, 1:].unsqueeze(-1)).squeeze(-1)
        return -(token * outputs.mask[:, 0, 1:]).sum(-1)


@dataclass(frozen=True, kw_only=True)
class TaylorTerms(Statistic):
    """One row a document: the sum over its tokens of |activation x gradient|."""

    name: str = "taylor-terms"

    def passes(self, layers: int) -> Sequence[Pass]:
        """One forward and backward of the calibration text."""
        return (Pass(stream="calibration", objective=NegativeLogLikelihood(), logits="all"),)

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        """See `Statistic.summands`. Output `terms`: (C, 1, N)."""
        product = obs.acts["neuron"].double() * obs.grads["neuron"].double()
        return {"terms": (product.abs() * obs.mask.unsqueeze(-1)).sum((1, 2)).unsqueeze(1)}


@dataclass(frozen=True, kw_only=True)
class Taylor(ImportanceScorer):
    """Sum of the statistic above. Unit: nats."""

    def needs(self) -> Needs:
        """One gradient pass over the scoring half of the calibration text."""
        return Needs(statistics=(TaylorTerms(),))

    def score(self, at: SiteContext) -> Tensor:
        """See `ImportanceScorer.score`."""
        return at.sums["taylor-terms.terms"][0]
