"""Loss of texts, one document or window at a time: perplexity of one model, and perplexity and KL of two on the same text.

Every perplexity of the package is made here: nats summed in float64 from the logits on, over all tokens but the first of each document,
in forwards of documents of like length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fairprune_framework.calibration.text import padded
from fairprune_framework.errors import FairpruneError
from fairprune_framework.functional.bootstrap import Floats, StatisticChange, change_of
from fairprune_framework.functional.divergence import kl_divergence
from fairprune_framework.functional.log_probs import token_log_probs
from fairprune_framework.utilities.progress import counted

WINDOW = 512
ROWS = 256
"""Positions whose logits are turned to float64 at once: bounds the memory."""


@dataclass(frozen=True, kw_only=True)
class TextLoss:
    """Of one model on one text."""

    nll: tuple[float, ...]
    """Nats of each document or window, summed over its tokens but the first."""
    tokens: tuple[int, ...]
    """Tokens that were predicted in each."""

    @property
    def perplexity(self) -> float:
        """Per token: exp(sum of nats / tokens); infinite where no number holds it."""
        mean = sum(self.nll) / sum(self.tokens)
        return math.exp(mean) if mean < 700 else math.inf


@dataclass(frozen=True, kw_only=True)
class LanguageCost:
    """Two models on the same documents."""

    before: TextLoss
    after: TextLoss
    kl: float
    """Mean over tokens of KL(before || after), nats."""

    @property
    def increase(self) -> float:
        """Relative increase of perplexity."""
        return self.after.perplexity / self.before.perplexity - 1


def windows_of(ids: Sequence[int], window: int = WINDOW) -> list[tuple[int, ...]]:
    """The text in windows that share no context; what is left over at the end and holds fewer than two tokens is dropped.

    >>> windows_of([5, 6, 7, 8, 9], 2)
    [(5, 6), (7, 8)]
    """
    windows = [tuple(ids[start : start + window]) for start in range(0, len(ids), window)]
    return [each for each in windows if len(each) > 1]


@torch.inference_mode()
def text_loss(model: nn.Module, documents: Sequence[Sequence[int]], max_tokens: int = 512) -> TextLoss:
    """Measure documents with the model as it is (also masked), in its own dtype.

    Args:
        documents: token ids, at least two each.
        max_tokens: padded tokens per forward.

    Raises:
        FairpruneError: a loss is NaN or infinite.
    """
    nll = [0.0] * len(documents)
    for batch in _batches(documents, max_tokens):
        for index, logits in zip(batch, _logits(model, [documents[index] for index in batch]), strict=True):
            nll[index] = sum(_nll(log_p, targets) for log_p, targets in _parts(logits, documents[index]))
    if not all(map(math.isfinite, nll)):
        raise FairpruneError("NaN or Inf in the log-probability of a text")
    return TextLoss(nll=tuple(nll), tokens=tuple(len(document) - 1 for document in documents))


@torch.inference_mode()
def language_cost(
    model: nn.Module,
    documents: Sequence[Sequence[int]],
    *,
    other: nn.Module | None = None,
    change: Callable[[], AbstractContextManager[None]] = nullcontext,
    max_tokens: int = 512,
) -> LanguageCost:
    """Compare a model with another one, or with itself inside the context that `change` opens; losses are those of `text_loss`."""
    before, after, kl = [0.0] * len(documents), [0.0] * len(documents), [0.0] * len(documents)
    for batch in counted(list(_batches(documents, max_tokens)), "perplexity", "forwards"):
        texts = [documents[index] for index in batch]
        logits_before = _logits(model, texts)
        with change():
            logits_after = _logits(other or model, texts)
        for index, first, second in zip(batch, logits_before, logits_after, strict=True):
            for (log_p, targets), (log_q, _) in zip(
                _parts(first, documents[index]), _parts(second, documents[index]), strict=True
            ):
                before[index] += _nll(log_p, targets)
                after[index] += _nll(log_q, targets)
                kl[index] += float(kl_divergence(log_p, log_q.to(log_p.device)).sum())
    tokens = tuple(len(document) - 1 for document in documents)
    return LanguageCost(
        before=TextLoss(nll=tuple(before), tokens=tokens),
        after=TextLoss(nll=tuple(after), tokens=tokens),
        kl=sum(kl) / sum(tokens),
    )


def perplexity_change(before: TextLoss, after: TextLoss, seed: int = 0, level: float = 0.95) -> StatisticChange:
    """Perplexity before and after, with an interval over documents or windows."""
    first, second = (np.stack([loss.nll, loss.tokens], 1) for loss in (before, after))
    return change_of(first, second, range(len(before.nll)), _perplexity, seed=seed, level=level)


def _perplexity(sums: Floats) -> Floats:
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        return np.asarray(np.exp(sums[..., 0] / sums[..., 1]))


def _batches(documents: Sequence[Sequence[int]], max_tokens: int) -> Iterator[list[int]]:
    """Indices of the documents that share a forward: of like length, the longest first."""
    batch: list[int] = []
    for index in sorted(range(len(documents)), key=lambda i: (-len(documents[i]), i)):
        if batch and (len(batch) + 1) * len(documents[batch[0]]) > max_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _logits(model: nn.Module, documents: Sequence[Sequence[int]]) -> list[Tensor]:
    """One forward: of each document the logits that predict its tokens but the first, `(T - 1, vocabulary)`."""
    device = next(model.parameters()).device
    ids, mask = padded(documents)
    attention = None if bool(mask.all()) else mask.to(device)
    logits = model(input_ids=ids.to(device), attention_mask=attention, use_cache=False).logits
    return [logits[row, : len(document) - 1] for row, document in enumerate(documents)]


def _parts(logits: Tensor, document: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Log probabilities, `(R, vocabulary)` float64, and the tokens that came, `(R,)`, for at most `ROWS` positions at a time."""
    targets = torch.tensor(document[1:], device=logits.device)
    for part, came in zip(torch.split(logits, ROWS), torch.split(targets, ROWS), strict=True):
        yield torch.log_softmax(part.double(), -1), came


def _nll(log_p: Tensor, targets: Tensor) -> float:
    return -float(token_log_probs(log_p, targets).sum())
