"""Importance by Taylor expansion of the language-model loss: sum over calibration tokens of |a_i dNLL/da_i| ** power.

With `power=1` the first-order criterion on activations (LLM-Pruner, Ma et al. 2023, uses it on weights); with `power=2` its squares, the
diagonal of the empirical Fisher matrix of a gate on the neuron. Source: Molchanov et al. 2019, eq. 8, and Theis et al. 2018, eq. 6.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

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
    """One row a document: the sum over its tokens of |activation x gradient| ** power."""

    name: str = "taylor-terms"
    power: Literal[1, 2] = 1

    def passes(self, layers: int) -> Sequence[Pass]:
        """One forward and backward of the calibration text."""
        return (Pass(stream="calibration", objective=NegativeLogLikelihood(), logits="all"),)

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        """See `Statistic.summands`. Output `terms`: (C, 1, N)."""
        acts_CVTN, grads_CVTN = obs.acts["neuron"], obs.grads["neuron"]
        wide = torch.promote_types(acts_CVTN.dtype, torch.float32)
        product_CVTN = (acts_CVTN.to(wide) * grads_CVTN).mul_(obs.mask.unsqueeze(-1))
        terms_CVTN = product_CVTN.abs_() if self.power == 1 else product_CVTN.square_()
        return {"terms": terms_CVTN.sum(2).double().sum(1, keepdim=True)}


@dataclass(frozen=True, kw_only=True)
class Taylor(ImportanceScorer):
    """Sum of the statistic above. Unit: nats, or nats squared."""

    power: Literal[1, 2] = 1
    """1: absolute first-order terms. 2: their squares, the empirical Fisher criterion."""

    def __post_init__(self) -> None:
        if self.power not in (1, 2):
            raise ValueError(f"The 'power' must be 1 or 2. Got {self.power} instead.")

    def needs(self) -> Needs:
        """One gradient pass over the scoring half of the calibration text."""
        return Needs(statistics=(self._terms,))

    @property
    def _terms(self) -> TaylorTerms:
        return TaylorTerms(name="taylor-terms" if self.power == 1 else "fisher-terms", power=self.power)

    def score(self, at: SiteContext) -> Tensor:
        """See `ImportanceScorer.score`."""
        return at.sums[f"{self._terms.name}.terms"][0]
