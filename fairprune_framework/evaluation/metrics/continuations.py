"""log p of continuations after contexts: the one forward that sentence metrics and benchmark tasks need, at the price of its tokens.

Continuations of the same context (the choices of a question) share it: they stand behind it in one row, each sees the context and itself
alone, at its own positions. The head sees only the positions that predict a wanted token; each distinct request is computed once; rows
of like length go together, so that there is little padding. Whether a model can share is tried on it first; where it cannot, every
request gets a row of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fairprune_framework.errors import FairpruneError
from fairprune_framework.models.head import Answers, Positions, answers_of, vocabulary_of

SHARE_FROM = 8
"""Contexts of fewer tokens are not worth sharing."""
_TOLERANCE = 1e-2

Request = tuple[tuple[int, ...], tuple[int, ...]]
"""Token ids of a context (at least one) and of its continuation (at least one)."""
Answer = tuple[float, bool]
"""log p in nats, and whether the continuation is what the model would have chosen, token by token."""


@dataclass(frozen=True)
class _Row:
    context: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]

    @property
    def width(self) -> int:
        """Tokens of the forward: the last one of a continuation predicts nothing that is asked for."""
        return len(self.context) + sum(len(tokens) - 1 for tokens in self.continuations)


@torch.inference_mode()
def score(
    model: nn.Module,
    requests: Sequence[Request],
    max_tokens: int = 512,
    progress: Callable[[int], None] = lambda requests: None,
) -> list[Answer]:
    """Answer every request, in the order given, with the model as it is (also masked).

    Args:
        max_tokens: padded tokens per forward.

    Raises:
        FairpruneError: a log-probability is NaN or infinite.
    """
    training = model.training
    model.eval()
    try:
        answers = _score(model, requests, max_tokens, progress, shares(model))
    finally:
        model.train(training)
    for request in requests:
        value = answers[request][0]
        if not (value == value and abs(value) != float("inf")):
            raise FairpruneError("NaN or Inf in the log-probability of a text")
    return [answers[request] for request in requests]


def tokens_of(requests: Sequence[Request], shared: bool = True) -> int:
    """Tokens that `score` computes, padding left aside: what a benchmark costs."""
    return sum(row.width for row in _rows(requests, 1 << 62, shared))


@torch.inference_mode()
def shares(model: nn.Module) -> bool:
    """The model gives the same answers to continuations that share a row; tried once on made-up tokens, then remembered."""
    known = getattr(model, "_fairprune_shares_contexts", None)
    if known is None:
        known = "position_ids" in inspect.signature(model.forward).parameters and _tried(model)
        model._fairprune_shares_contexts = known  # type: ignore[assignment]
    return bool(known)


def _tried(model: nn.Module) -> bool:
    size = model.config.get_text_config().vocab_size  # type: ignore[union-attr,operator]
    ids = torch.randint(0, size, (20,), generator=torch.Generator().manual_seed(0)).tolist()
    requests: list[Request] = [(tuple(ids[:12]), tuple(ids[12:15])), (tuple(ids[:12]), tuple(ids[15:20]))]
    try:
        together = _score(model, requests, 512, lambda count: None, True)
    except Exception:  # a model that takes no mask of its own: it is asked one request a row
        return False
    apart = _score(model, requests, 512, lambda count: None, False)
    return all(abs(together[request][0] - apart[request][0]) <= _TOLERANCE for request in requests)


def _score(
    model: nn.Module, requests: Sequence[Request], max_tokens: int, progress: Callable[[int], None], shared: bool
) -> dict[Request, Answer]:
    weight, width = next(model.parameters()), vocabulary_of(model)
    answers: dict[Request, Answer] = {}
    for batch in _batches(_rows(requests, max_tokens, shared), max_tokens):
        inputs, wanted, targets = _laid_out(batch, weight.device, weight.dtype)
        log_p, best = token_answers(answers_of(model, **inputs), wanted, targets.to(weight.device), width)
        start = 0
        for row in batch:
            for tokens in row.continuations:
                span = slice(start, start := start + len(tokens))
                answers[row.context, tokens] = (float(log_p[span].sum()), bool(best[span].all()))
        progress(sum(len(row.continuations) for row in batch))
    return answers


def _rows(requests: Sequence[Request], max_tokens: int, shared: bool) -> list[_Row]:
    contexts: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    rows = []
    for context, tokens in dict.fromkeys(requests):
        if shared and len(context) >= SHARE_FROM:
            contexts.setdefault(context, []).append(tokens)
        else:
            rows.append(_Row(context, (tokens,)))
    for context, many in contexts.items():
        kept: list[tuple[int, ...]] = []
        for tokens in sorted(many, key=lambda tokens: (len(tokens), tokens)):
            if kept and _Row(context, (*kept, tokens)).width > max_tokens:
                rows.append(_Row(context, tuple(kept)))
                kept = []
            kept.append(tokens)
        rows.append(_Row(context, tuple(kept)))
    return rows


def _batches(rows: Sequence[_Row], max_tokens: int) -> Iterator[list[_Row]]:
    batch: list[_Row] = []
    for row in sorted(rows, key=lambda row: (-row.width, row.context, row.continuations)):
        if batch and (len(batch) + 1) * batch[0].width > max_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _laid_out(batch: Sequence[_Row], device: Any, dtype: torch.dtype) -> tuple[dict[str, Tensor], Positions, Tensor]:
    """What the model is given, the positions whose logits are wanted, and their targets (M,)."""
    width = batch[0].width
    ids = torch.zeros((len(batch), width), dtype=torch.long)
    lengths = torch.tensor([row.width for row in batch])
    positions_wanted: list[tuple[int, int]] = []
    targets: list[int] = []
    branch = torch.zeros((len(batch), width), dtype=torch.long)  # 0: the context, which all see; padding is a branch as well
    positions = torch.zeros((len(batch), width), dtype=torch.long)
    for index, row in enumerate(batch):
        start = len(row.context)
        ids[index, :start] = torch.tensor(row.context)
        positions[index, :start] = torch.arange(start)
        end = start
        for number, tokens in enumerate(row.continuations, start=1):
            size = len(tokens) - 1
            ids[index, end : end + size] = torch.tensor(tokens[:-1])
            branch[index, end : end + size] = number
            positions[index, end : end + size] = torch.arange(start, start + size)
            positions_wanted += [(index, start - 1), *((index, position) for position in range(end, end + size))]
            targets += tokens
            end += size
        branch[index, end:] = -1
    rows, columns = torch.tensor(positions_wanted).T.to(device)
    wanted = (rows, columns)
    inputs = {"input_ids": ids.to(device)}
    if all(len(row.continuations) == 1 for row in batch):
        if int(lengths.min()) < width:
            inputs["attention_mask"] = (torch.arange(width) < lengths.unsqueeze(1)).long().to(device)
        return inputs, wanted, torch.tensor(targets)
    before = torch.ones(width, width, dtype=torch.bool).tril()
    seen = before & ((branch.unsqueeze(1) == 0) | (branch.unsqueeze(1) == branch.unsqueeze(2)))
    mask = torch.zeros((len(batch), 1, width, width), dtype=dtype).masked_fill(~seen.unsqueeze(1), torch.finfo(dtype).min)
    inputs["attention_mask"], inputs["position_ids"] = mask.to(device), positions.to(device)
    return inputs, wanted, torch.tensor(targets)


def token_answers(answers: Answers, positions: Positions, targets_M: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """What a forward says of the tokens that come.

    Args:
        positions: those that predict them.
        targets_M: the tokens.
        width: of the vocabulary.

    Returns:
        (M,) log p, log softmax in float32 given as float64; (M,) bool, whether each is the likeliest token. On the CPU.
    """
    values, best = [torch.zeros(0, dtype=torch.float64)], [torch.zeros(0, dtype=torch.bool)]
    for part, logits in answers.parts(positions, width):
        wide, targets = logits.float(), targets_M[part]
        values.append((wide.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - wide.logsumexp(-1)).double().cpu())
        best.append((wide.argmax(-1) == targets).cpu())
    return torch.cat(values), torch.cat(best)
