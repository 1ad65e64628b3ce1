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
from fairprune_framework.models.head import Answers, answers_of, positions_before, vocabulary_of
from fairprune_framework.utilities.progress import counted

WINDOW = 512
ROWS, WIDE_VALUES = 256, 2**22
"""Positions and values whose log probabilities are in float64 at once: 32 MiB, and 85 positions of a vocabulary of 49,152."""


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
        texts = [documents[index] for index in batch]
        losses = torch.cat([_nll(log_p, targets) for log_p, targets in _parts(texts, _answers(model, texts))])
        for index, loss in zip(batch, _by_document(losses, texts), strict=True):
            nll[index] = loss
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
    """Compare a model with another one, or with itself inside the context that `change` opens; losses are those of `text_loss`.

    Raises:
        FairpruneError: a loss of the first model is NaN or infinite.
    """
    before, after, kl = [0.0] * len(documents), [0.0] * len(documents), [0.0] * len(documents)
    for batch in counted(list(_batches(documents, max_tokens)), "perplexity", "forwards"):
        texts = [documents[index] for index in batch]
        first = _answers(model, texts)
        with change():
            second = _answers(other or model, texts)
        columns: list[tuple[Tensor, Tensor, Tensor]] = []
        for (log_p, targets), (log_q, others) in zip(_parts(texts, first), _parts(texts, second), strict=True):
            divergence = kl_divergence(log_p, log_q.to(log_p.device)).cpu()
            columns.append((_nll(log_p, targets), _nll(log_q, others), divergence))
        for sums, parts in zip((before, after, kl), zip(*columns, strict=True), strict=True):
            for index, value in zip(batch, _by_document(torch.cat(parts), texts), strict=True):
                sums[index] = value
    tokens = tuple(len(document) - 1 for document in documents)
    return LanguageCost(
        before=TextLoss(nll=tuple(before), tokens=tokens),
        after=TextLoss(nll=tuple(after), tokens=tokens),
        kl=sum(kl) / sum(tokens),
    )


def perplexity_change(before: TextLoss, after: TextLoss, seed: int = 0, level: float = 0.95) -> StatisticChange:
    """Perplexity before and after, with an interval over documents or windows."""
    first, second = (np.stack([loss.nll, loss.tokens], 1) for loss in (before, after))
    return change_of(first, second, range(len(before.nll)), perplexity, seed=seed, level=level)


def perplexity(sums: Floats) -> Floats:
    """exp(column 0 / column 1): of nats and tokens."""
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


def _answers(model: nn.Module, documents: Sequence[Sequence[int]]) -> tuple[Answers, int]:
    """One forward of documents, and the width of its logits."""
    device = next(model.parameters()).device
    ids, mask = padded(documents)
    attention = None if bool(mask.all()) else mask.to(device)
    return answers_of(model, input_ids=ids.to(device), attention_mask=attention), vocabulary_of(model)


def _parts(documents: Sequence[Sequence[int]], answers: tuple[Answers, int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Log probabilities, `(R, vocabulary)` float64, and the tokens that came, `(R,)`: of all documents in turn, few positions at a time."""
    given, width = answers
    positions = positions_before([len(document) for document in documents], given.hidden_BTH.device)
    targets = torch.tensor([token for document in documents for token in document[1:]], device=given.hidden_BTH.device)
    rows = max(1, min(ROWS, WIDE_VALUES // width))
    for part, logits in given.parts(positions, width):
        for some, came in zip(torch.split(logits, rows), torch.split(targets[part], rows), strict=True):
            yield torch.log_softmax(some.double(), -1), came


def _nll(log_p: Tensor, targets: Tensor) -> Tensor:
    """Nats of each token, on the CPU."""
    return -token_log_probs(log_p, targets).cpu()


def _by_document(values: Tensor, documents: Sequence[Sequence[int]]) -> list[float]:
    """The sum of each document's values."""
    return [float(part.sum()) for part in torch.split(values, [len(document) - 1 for document in documents])]
