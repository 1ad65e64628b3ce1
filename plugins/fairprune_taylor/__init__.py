"""Importance by Taylor expansion of the language-model loss: sum over calibration tokens of |a_i dNLL/da_i| ** power.

With `power=1` the first-order criterion on activations (LLM-Pruner, Ma et al. 2023, uses it on weights); with `power=2` its squares, the
diagonal of the empirical Fisher matrix of a gate on the neuron; with `labels="model"` of the Fisher matrix itself (Kunstner et al. 2019,
section 3). Source: Molchanov et al. 2019, eq. 8, and Theis et al. 2018, eq. 6.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from fairprune_framework.api import ImportanceScorer, Needs, Observation, Outputs, Pass, SiteContext, Statistic

Labels = Literal["text", "model"]


@dataclass(frozen=True, kw_only=True)
class NegativeLogLikelihood:
    """Sum over the tokens of a document of -log p(token | tokens before it), nats."""

    labels: Labels = "text"
    """text: the tokens that stand there. model: a token drawn at each position from what the model expects, the same whenever asked."""

    def __call__(self, outputs: Outputs) -> Tensor:
        """(C, 1, T, vocab) logits -> (C,)."""
        if self.labels == "model":
            outputs = replace(outputs, tokens=_drawn(outputs))
        return -(outputs.token_log_p()[:, 0] * outputs.mask[:, 0, 1:]).sum(-1)


@torch.no_grad()
def _drawn(outputs: Outputs) -> Tensor:
    """(C, 1, T) int64: at each position but the first a token that the model draws there, by uniform numbers that depend on the document
    alone, not on its batch or device."""
    drawn = outputs.tokens.clone()
    for logits_TW, ids, mask, row in zip(
        outputs.logits[:, 0], outputs.tokens[:, 0], outputs.mask[:, 0], drawn[:, 0], strict=True
    ):
        document = ids[mask]
        seed = zlib.crc32(document.cpu().numpy().tobytes())
        uniform_T1 = torch.rand(len(document) - 1, 1, generator=torch.Generator().manual_seed(seed)).to(logits_TW.device)
        reached_TW = logits_TW[: len(document) - 1].float().log_softmax(-1).exp().cumsum(-1)
        drawn_T1 = torch.searchsorted(reached_TW, uniform_T1 * reached_TW[:, -1:])
        row[1 : len(document)] = drawn_T1.squeeze(-1).clamp_max(logits_TW.shape[-1] - 1)
    return drawn


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
