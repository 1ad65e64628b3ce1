"""What a plan costs as a language model: perplexity and KL to the original on calibration text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from fairprune_framework.calibration.text import padded
from fairprune_framework.evaluation.fixed_text import TextLoss
from fairprune_framework.functional.divergence import kl_divergence
from fairprune_framework.functional.log_probs import log_probs, token_log_probs
from fairprune_framework.utilities.progress import counted

ROWS = 4
"""Documents per forward: bounds the memory of the logits."""


@dataclass(frozen=True, kw_only=True)
class LanguageCost:
    """Before and after on the same documents."""

    perplexity_before: float
    perplexity_after: float
    kl: float
    """Mean over tokens of KL(before || after), nats."""
    tokens: int
    nll_before: tuple[float, ...]
    """Per document: mean over its tokens, nats."""
    nll_after: tuple[float, ...]

    tokens_by_document: tuple[int, ...]
    """Predicted tokens of each."""

    @property
    def losses(self) -> tuple[TextLoss, TextLoss]:
        """Before and after, summed over the tokens of each document."""
        before, after = (
            TextLoss(
                nll=tuple(m * n for m, n in zip(means, self.tokens_by_document, strict=True)), tokens=self.tokens_by_document
            )
            for means in (self.nll_before, self.nll_after)
        )
        return before, after

    @property
    def increase(self) -> float:
        """exp(mean NLL after) / exp(mean NLL before) - 1."""
        return self.perplexity_after / self.perplexity_before - 1


@torch.inference_mode()
def language_cost(
    model: nn.Module,
    documents: Sequence[Sequence[int]],
    *,
    other: nn.Module | None = None,
    change: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> LanguageCost:
    """Compare a model with another one, or with itself inside the context that `change` opens."""
    sums = torch.zeros(3, dtype=torch.float64)
    before_documents: list[float] = []
    after_documents: list[float] = []
    for start in counted(range(0, len(documents), ROWS), "perplexity", "forwards"):
        ids, mask = padded(documents[start : start + ROWS])
        logits_before = _logits(model, ids, mask)
        with change():
            logits_after = _logits(other or model, ids, mask)
        for row in range(ids.shape[0]):
            length = int(mask[row].sum())
            target = ids[row, 1:length].to(logits_before.device)
            log_p = torch.log_softmax(logits_before[row, : length - 1].double(), -1)
            log_q = torch.log_softmax(logits_after[row, : length - 1].double().to(log_p.device), -1)
            nll_p, nll_q = -token_log_probs(log_p, target), -token_log_probs(log_q, target)
            kl = kl_divergence(log_p, log_q)
            sums += torch.stack([nll_p.sum(), nll_q.sum(), kl.sum()]).cpu()
            before_documents.append(nll_p.mean().item())
            after_documents.append(nll_q.mean().item())
    tokens = sum(len(document) - 1 for document in documents)
    mean = (sums / tokens).tolist()
    return LanguageCost(
        perplexity_before=torch.tensor(mean[0], dtype=torch.float64).exp().item(),
        perplexity_after=torch.tensor(mean[1], dtype=torch.float64).exp().item(),
        kl=mean[2],
        tokens=tokens,
        nll_before=tuple(before_documents),
        nll_after=tuple(after_documents),
        tokens_by_document=tuple(len(document) - 1 for document in documents),
    )


@torch.inference_mode()
def perplexity(model: nn.Module, documents: Sequence[Sequence[int]]) -> float:
    """exp of the mean negative log likelihood per token of a model as it is (also masked), in its own dtype."""
    total = 0.0
    for start in range(0, len(documents), ROWS):
        ids, mask = padded(documents[start : start + ROWS])
        logits = _logits(model, ids, mask)
        for row in range(ids.shape[0]):
            length = int(mask[row].sum())
            target = ids[row, 1:length].to(logits.device)
            total -= log_probs(logits[row, : length - 1], target).double().sum().item()
    return float(torch.tensor(total / sum(len(document) - 1 for document in documents), dtype=torch.float64).exp())


def _logits(model: nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    device = next(model.parameters()).device
    attention = None if bool(mask.all()) else mask.to(device)
    return model(input_ids=ids.to(device), attention_mask=attention, use_cache=False).logits  # type: ignore[no-any-return]
