"""Log-probabilities of whole texts, and what they say about a contrast: the gap between its variants, and which is preferred.

`sequence-gap`: mean over all pairs of variants of |log p_i - log p_j|, nats; for two variants lm-eval's `likelihood_diff`.
`stereotype-preference`: 1 where the stereotyping sentence is the likelier one; its mean is the stereotype share, whose ideal is
0.5 (Nangia et al. 2020 for CrowS-Pairs; lm-eval's `pct_stereotype`). log p is summed over all tokens but the
first, as the attribution of the same gap sees them: a model without BOS gives its first token no probability. lm-eval's task
`crows_pairs_english` puts BOS (or EOS) before the sentence and counts all tokens; with `start_token` these numbers are that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from fairprune_framework.contrasts.alignment import AlignedContrast
from fairprune_framework.evaluation.metrics.continuations import score, token_answers
from fairprune_framework.models.head import Answers, positions_before


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


def start_token(tokenizer: Any) -> int | None:
    """The token before an empty context, as lm-eval chooses it: BOS, else EOS."""
    return tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id  # type: ignore[no-any-return]


def text_log_probs(answers: Answers, input_ids: Tensor, lengths: Sequence[int], width: int) -> list[float]:
    """log p of each right-padded text of a forward over all its tokens but the first, nats.

    Args:
        input_ids: (B, T).
        lengths: tokens of each.
        width: of the vocabulary.
    """
    rows, columns = positions_before(lengths, input_ids.device)
    log_p, _ = token_answers(answers, (rows, columns), input_ids[rows, columns + 1], width)
    return [float(part.sum()) for part in torch.split(log_p, [length - 1 for length in lengths])]


def log_probabilities(
    model: nn.Module,
    texts: Sequence[Sequence[int]],
    start: int | None,
    max_tokens: int = 512,
    progress: Callable[[int], None] = lambda texts: None,
) -> list[float]:
    """log p of each text, in nats, in the order given.

    Args:
        texts: token ids, at least one each.
        start: token put before every text that does not begin with it; None: the first token of a text is not counted.
        max_tokens: padded tokens per forward.

    Raises:
        FairpruneError: a log-probability is NaN or infinite.
    """
    rows = [tuple(ids) if start is None or ids[0] == start else (start, *ids) for ids in texts]
    requests = [(ids[:1], ids[1:]) for ids in rows]
    answers = dict(zip(asked := [r for r in requests if r[1]], score(model, asked, max_tokens, progress), strict=True))
    return [answers[request][0] if request[1] else 0.0 for request in requests]


def measure_sentences(
    model: nn.Module,
    contrasts: Sequence[AlignedContrast],
    start: int | None = None,
    max_tokens: int = 512,
    progress: Callable[[int], None] = lambda texts: None,
) -> list[SentenceMeasure]:
    """Measure every contrast with the model as it is (also masked), in the order given. `start`: see `log_probabilities`."""
    texts = [tokens.ids for contrast in contrasts for tokens in contrast.variants]
    values = iter(log_probabilities(model, texts, start, max_tokens, progress))
    return [
        SentenceMeasure(id=contrast.id, log_probabilities=tuple(next(values) for _ in contrast.variants))
        for contrast in contrasts
    ]
