"""Log-probabilities of whole texts, and what they say about a contrast: the gap between its variants, and which is preferred.

`sequence-gap`: mean over all pairs of variants of |log p_i - log p_j|, nats; for two variants lm-eval's `likelihood_diff`.
`stereotype-preference`: 1 where the stereotyping sentence is the likelier one; its mean is the stereotype share, whose ideal is
0.5 (Nangia et al. 2020 for CrowS-Pairs; lm-eval's `pct_stereotype`). log p is summed over all tokens, after the token that lm-eval
puts before an empty context (BOS, else EOS) unless the tokenizer puts it there itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from fairprune_framework.contrasts.alignment import AlignedContrast
from fairprune_framework.contrasts.schema import Contrast
from fairprune_framework.errors import FairpruneError

STEREOTYPED: Mapping[str, str] = {"more": "less", "pro": "anti", "stereotype": "anti-stereotype"}
"""Attribute of the stereotyping variant -> attribute of the other one: CrowS-Pairs, WinoBias, StereoSet."""
ROWS_OF_LOGITS = 256
"""Positions whose logits are turned to float32 at once: bounds the memory."""


@dataclass(frozen=True, kw_only=True)
class SentenceMeasure:
    """One contrast in one model."""

    id: str
    log_probabilities: tuple[float, ...]
    """Nats, of each variant."""

    @property
    def gap(self) -> float:
        """Mean over pairs of variants of the absolute difference, nats."""
        gaps = [abs(a - b) for a, b in combinations(self.log_probabilities, 2)]
        return sum(gaps) / len(gaps)

    def prefers(self, stereotyping: int, other: int) -> bool:
        """The stereotyping variant is the likelier one; a tie does not count, as in lm-eval."""
        return self.log_probabilities[stereotyping] > self.log_probabilities[other]


def stereotyping_variants(contrast: Contrast) -> tuple[int, int] | None:
    """Places of the stereotyping variant and of the other one; None where a contrast has no such pair.

    >>> from fairprune_framework.contrasts.schema import Variant
    >>> pair = (Variant(attribute="anti", text="She fixed it."), Variant(attribute="pro", text="He fixed it."))
    >>> stereotyping_variants(Contrast(id="1", category="gender", template_id="1", variants=pair))
    (1, 0)
    """
    names = [variant.attribute for variant in contrast.variants]
    if len(names) == 2:
        for place, name in enumerate(names):
            if STEREOTYPED.get(name) == names[1 - place]:
                return place, 1 - place
    return None


def start_token(tokenizer: Any) -> int | None:
    """The token before an empty context, as lm-eval chooses it: BOS, else EOS."""
    return tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id  # type: ignore[no-any-return]


@torch.inference_mode()
def log_probabilities(
    model: nn.Module,
    texts: Sequence[Sequence[int]],
    start: int | None,
    budget: int = 512,
    progress: Callable[[int], None] = lambda texts: None,
) -> list[float]:
    """log p of each text, in nats, in the order given. Each distinct text is computed once, with others of its length.

    Args:
        texts: token ids.
        start: token put before every text that does not begin with it; None: the first token of a text is not counted.
        budget: padded tokens per forward.

    Raises:
        FairpruneError: a log-probability is NaN or infinite.
    """
    device = next(model.parameters()).device
    rows = {tuple(ids): (*([] if start is None or ids[0] == start else [start]), *ids) for ids in texts}
    order = sorted(rows, key=lambda ids: (-len(rows[ids]), ids))
    found: dict[tuple[int, ...], float] = {}
    state: dict[str, Tensor] = {}
    training = model.training
    model.eval()
    try:
        with _wanted_positions(model, lambda: state["wanted"]):
            for batch in _batches(order, rows, budget):
                width = len(rows[batch[0]])
                ids = torch.zeros((len(batch), width), dtype=torch.long)
                lengths = torch.tensor([len(rows[text]) for text in batch])
                for row, text in enumerate(batch):
                    ids[row, : lengths[row]] = torch.tensor(rows[text])
                mask = torch.arange(width) < lengths.unsqueeze(1)
                wanted = torch.arange(width - 1) < (lengths - 1).unsqueeze(1)
                ids, state["wanted"] = ids.to(device), wanted.to(device)
                attention = None if bool(mask.all()) else mask.long().to(device)
                logits = model(input_ids=ids[:, :-1], attention_mask=_head(attention), use_cache=False).logits[0]
                per_token = _gathered(logits, ids[:, 1:][state["wanted"]]).cpu()
                sums = [piece.sum().item() for piece in torch.split(per_token, (lengths - 1).tolist())]
                found |= dict(zip(batch, sums, strict=True))
                progress(len(batch))
    finally:
        model.train(training)
    result = [found[tuple(ids)] for ids in texts]
    if not torch.isfinite(torch.tensor(result, dtype=torch.float64)).all():
        raise FairpruneError("NaN or Inf in the log-probability of a text")
    return result


def _head(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask[:, :-1]


def _batches(
    order: Sequence[tuple[int, ...]], rows: Mapping[tuple[int, ...], Sequence[int]], budget: int
) -> Iterator[list[tuple[int, ...]]]:
    batch: list[tuple[int, ...]] = []
    for text in order:
        if batch and (len(batch) + 1) * len(rows[batch[0]]) > budget:
            yield batch
            batch = []
        batch.append(text)
    if batch:
        yield batch


def _gathered(logits_MV: Tensor, targets_M: Tensor) -> Tensor:
    """log softmax at the targets, in float32, summed up in float64: (M,)."""
    pieces = []
    for logits, targets in zip(torch.split(logits_MV, ROWS_OF_LOGITS), torch.split(targets_M, ROWS_OF_LOGITS), strict=True):
        pieces.append(torch.log_softmax(logits.float(), -1).gather(-1, targets.unsqueeze(-1)).squeeze(-1).double())
    return torch.cat(pieces)


@contextmanager
def _wanted_positions(model: nn.Module, wanted: Callable[[], Tensor]) -> Iterator[None]:
    """The head sees the positions that are asked for alone, as one row: (1, M, H)."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    if head is None:
        raise FairpruneError(f"{type(model).__name__} has no output embeddings: log-probabilities cannot be read")

    def pick(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0][wanted()].unsqueeze(0), *args[1:])

    handle = head.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()


def measure_sentences(
    model: nn.Module,
    contrasts: Sequence[AlignedContrast],
    start: int | None,
    budget: int = 512,
    progress: Callable[[int], None] = lambda texts: None,
) -> list[SentenceMeasure]:
    """Measure every contrast with the model as it is (also masked), in the order given."""
    texts = [tokens.ids for contrast in contrasts for tokens in contrast.variants]
    values = iter(log_probabilities(model, texts, start, budget, progress))
    return [
        SentenceMeasure(id=contrast.id, log_probabilities=tuple(next(values) for _ in contrast.variants))
        for contrast in contrasts
    ]
