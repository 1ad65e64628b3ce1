"""Importance by Taylor expansion of the language-model loss: sum over calibration tokens of |a_i dNLL/da_i| ** power.

With `power=1` the first-order criterion on activations (LLM-Pruner, Ma et al. 2023, uses it on weights); with `power=2` its squares, the
diagonal of the empirical Fisher matrix of a gate on the neuron; with `labels="model"` of the Fisher matrix itself (Kunstner et al. 2019,
section 3). Source: Molchanov et al. 2019, eq. 8, and Theis et al. 2018, eq. 6.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from fairprune_framework.api import (
    ImportanceScorer,
    Labels,
    Needs,
    NegativeLogLikelihood,
    Observation,
    Pass,
    SiteContext,
    Statistic,
)


@dataclass(frozen=True, kw_only=True)
class TaylorTerms(Statistic):
    """One row a document: the sum over its tokens of |activation x gradient| ** power."""

    name: str = "taylor-terms"
    power: Literal[1, 2] = 1
    labels: Labels = "text"

    def passes(self, layers: int) -> Sequence[Pass]:
        """One forward and backward of the calibration text."""
        return (Pass(stream="calibration", objective=NegativeLogLikelihood(labels=self.labels), logits="all"),)

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        """See `Statistic.summands`. Output `terms`: (C, 1, N)."""
        return {"terms": obs.product_sums(of="absolute" if self.power == 1 else "squared").unsqueeze(1)}


@dataclass(frozen=True, kw_only=True)
class Taylor(ImportanceScorer):
    """Sum of the statistic above. Unit: nats, or nats squared."""

    power: Literal[1, 2] = 1
    """1: absolute first-order terms. 2: their squares, the empirical Fisher criterion."""
    labels: Labels = "text"
    """What the loss is of: text, the tokens that stand there; model, tokens that the model draws, which makes the squares Fisher's."""

    def __post_init__(self) -> None:
        if self.power not in (1, 2):
            raise ValueError(f"The 'power' must be 1 or 2. Got {self.power} instead.")

    def needs(self) -> Needs:
        """One gradient pass over the scoring half of the calibration text."""
        return Needs(statistics=(self._terms,))

    @property
    def _terms(self) -> TaylorTerms:
        name = "taylor-terms" if self.power == 1 else "fisher-terms"
        return TaylorTerms(name=name if self.labels == "text" else f"{name}-drawn", power=self.power, labels=self.labels)

    def score(self, at: SiteContext) -> Tensor:
        """See `ImportanceScorer.score`."""
        return at.sums[f"{self._terms.name}.terms"][0]
