"""Objectives that several plugins differentiate: equal by value, so that one audit makes each gradient pass once."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fairprune_framework.api.outputs import Outputs
from fairprune_framework.functional.divergence import generalised_js

Labels = Literal["text", "model"]


@dataclass(frozen=True, kw_only=True)
class NegativeLogLikelihood:
    """Sum over the tokens of a document of -log p(token | tokens before it), nats."""

    labels: Labels = "text"
    """text: the tokens that stand there. model: a token drawn at each position from what the model expects, the same whenever asked."""

    def __call__(self, outputs: Outputs) -> Tensor:
        """(C, 1, T, vocab) logits -> (C,)."""
        if self.labels == "text":
            return -outputs.token_log_p()[:, 0].sum(-1)
        following_CVT = torch.zeros_like(outputs.mask)
        following_CVT[:, :, :-1] = outputs.mask[:, :, 1:]
        uniform = _uniform(outputs).flatten()

        def of_drawn(logits_MW: Tensor, places: Tensor) -> Tensor:
            return _log_p_of_drawn(logits_MW, uniform[places])

        return -outputs.over_positions(of_drawn, following_CVT)[:, 0].sum(-1)


def _uniform(outputs: Outputs) -> Tensor:
    """(C, 1, T) float32: uniform numbers that depend on the document alone, not on its batch or device."""
    found = torch.zeros(outputs.tokens.shape)
    for ids, mask, row in zip(outputs.tokens[:, 0], outputs.mask[:, 0], found[:, 0], strict=True):
        document = ids[mask]
        seed = zlib.crc32(document.cpu().numpy().tobytes())
        row[: len(document) - 1] = torch.rand(len(document) - 1, 1, generator=torch.Generator().manual_seed(seed)).squeeze(1)
    return found.to(outputs.tokens.device)


def _log_p_of_drawn(logits_MW: Tensor, uniform_M: Tensor) -> Tensor:
    """log p of a token that the model draws at each position: (M,), at least float32, nats."""
    log_p_MW = logits_MW.to(torch.promote_types(logits_MW.dtype, torch.float32)).log_softmax(-1)
    with torch.no_grad():
        narrow_MW = log_p_MW if log_p_MW.dtype == torch.float32 else logits_MW.float().log_softmax(-1)
        reached_MW = narrow_MW.exp().cumsum_(-1)
        drawn_M1 = torch.searchsorted(reached_MW, uniform_M.unsqueeze(1) * reached_MW[:, -1:])
        drawn_M1.clamp_max_(logits_MW.shape[-1] - 1)
    return log_p_MW.gather(1, drawn_M1).squeeze(1)


@dataclass(frozen=True, kw_only=True)
class NextTokenDivergence:
    """Generalised JS divergence of the next-token distributions at the last token, nats."""

    def __call__(self, outputs: Outputs) -> Tensor:
        """(C, V, vocab) logits -> (C,)."""
        return generalised_js(outputs.logits, outputs.mask.any(-1))


@dataclass(frozen=True, kw_only=True)
class RecallLoss:
    """Sum over the recalled tokens of a document of -log p(token | tokens before it), nats.

    Recalled is a rare token that stood in the document before, one to three times, the token just before left out: likely a name or
    a thing of this text.
    """

    def __call__(self, outputs: Outputs) -> Tensor:
        """(C, 1, T, vocab) logits -> (C,)."""
        tokens_CT, mask_CT = outputs.tokens[:, 0], outputs.mask[:, 0]
        same_CTT = (tokens_CT.unsqueeze(2) == tokens_CT.unsqueeze(1)) & mask_CT.unsqueeze(1)
        times_CT = same_CTT.tril(-2).sum(2)
        recalled_CT = outputs.rare[:, 0] & (times_CT >= 1) & (times_CT <= 3) & mask_CT
        return -outputs.token_log_p(recalled_CT[:, 1:].unsqueeze(1))[:, 0].sum(-1)


@dataclass(frozen=True, kw_only=True)
class LegitimateMargin:
    """How much likelier the right next words of each variant are after it than after the other variants, nats.

    m = mean over v of [log p(right_v | v) - mean over u != v of log p(right_v | u)], as the metric `legitimate-margin`; for the stream
    `legitimate`.
    """

    def __call__(self, outputs: Outputs) -> Tensor:
        """(C, V, vocab) logits -> (C,)."""
        assert outputs.right is not None, "right words come with the stream `legitimate` alone"
        present_CV = outputs.mask.any(-1)
        log_p_CUW = outputs.logits.to(torch.promote_types(outputs.logits.dtype, torch.float32)).log_softmax(-1)
        asked_CVR = outputs.right.clamp_min(0)
        # of_right[c, v, u]: log p of any right word of v, after u
        index_CVUR = asked_CVR.unsqueeze(2).expand(-1, -1, log_p_CUW.shape[1], -1)
        found_CVUR = log_p_CUW.unsqueeze(1).expand(-1, asked_CVR.shape[1], -1, -1).gather(3, index_CVUR)
        missing_CVR = (outputs.right < 0) & present_CV.unsqueeze(
            2
        )  # an absent variant keeps a finite value, which is left out below
        of_right_CVU = found_CVUR.masked_fill(missing_CVR.unsqueeze(2), -torch.inf).logsumexp(3)
        pairs_CVU = present_CV.unsqueeze(2) & present_CV.unsqueeze(1)
        of_right_CVU = of_right_CVU.where(pairs_CVU, 0).double()
        own_CV = of_right_CVU.diagonal(dim1=1, dim2=2)
        count_C1 = present_CV.sum(1, keepdim=True)
        others_CV = (of_right_CVU.sum(2) - own_CV) / (count_C1 - 1)
        return ((own_CV - others_CV) * present_CV).sum(1) / count_C1.squeeze(1)
