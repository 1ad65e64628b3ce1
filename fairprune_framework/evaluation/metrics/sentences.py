"""Log-probabilities of whole texts, and what they say about a contrast: the gap between its variants, and which is preferred.

`sequence-gap`: mean over all pairs of variants of |log p_i - log p_j|, nats; for two variants lm-eval's `likelihood_diff`.
`stereotype-preference`: 1 where the stereotyping sentence is the likelier one; its mean is the stereotype share, whose ideal is
0.5 (lm-eval's `pct_stereotype`). log p is summed over all tokens but the first, as the attribution of the same gap sees them: a model
without BOS gives its first token no probability, so that pairs which differ in it have no preference. lm-eval's task
`crows_pairs_english` puts BOS (or EOS) before the sentence and counts all tokens; with `start_token` these numbers are that.
`shared-token-preference`: the same of the tokens that both sentences share (Nangia et al. 2020); see `shared_tokens.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from fairprune_framework.auditing.micro_batch import MicroBatch
from fairprune_framework.contrasts.alignment import AlignedContrast
from fairprune_framework.evaluation.metrics.continuations import score, token_answers
from fairprune_framework.models.head import Answers


@dataclass(frozen=True, kw_only=True)
class SentenceMeasure:
    """One contrast in one model."""

    id: str
    log_probabilities: tuple[float, ...]
    """Nats, of each variant."""
    shared: tuple[float, ...] = ()
    """Nats of the shared tokens behind the first difference, of each variant; empty: not measured."""
    shared_tokens: int = 0
    """How many these are in each variant."""
    whole: bool = True
    """The log-probabilities cover all that differs: they are no preference where the texts differ in a first token that is not scored."""
    equal_length: bool = True
    """All variants have the same number of tokens."""

    @property
    def gap(self) -> float:
        """Mean over pairs of variants of the absolute difference, nats."""
        gaps = [abs(a - b) for a, b in combinations(self.log_probabilities, 2)]
        return sum(gaps) / len(gaps)

    def prefers(self, stereotyping: int, other: int) -> bool | None:
        """The stereotyping variant is the likelier one; a tie does not count, as in lm-eval. None: their first tokens are not scored."""
        return self.log_probabilities[stereotyping] > self.log_probabilities[other] if self.whole else None

    def prefers_by_shared(self, stereotyping: int, other: int) -> bool | None:
        """The shared tokens are likelier in the stereotyping variant. None: there is none behind the first difference."""
        return self.shared[stereotyping] > self.shared[other] if self.shared_tokens else None


def start_token(tokenizer: Any) -> int | None:
    """The token before an empty context, as lm-eval chooses it: BOS, else EOS."""
    return tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id  # type: ignore[no-any-return]


def text_log_probs(answers: Answers, batch: MicroBatch, width: int) -> list[Tensor]:
    """log p of the tokens of each text of a forward, all but the first, nats: (tokens - 1,) float64 each. A token that texts share is
    asked for once.

    Args:
        batch: what the forward computed.
        width: of the vocabulary.
    """
    places_UT, length = batch.places, batch.input_ids.shape[1]
    exists = places_UT[:, 1:] >= 0
    tokens, which = torch.unique(places_UT[:, 1:][exists], return_inverse=True)
    before = torch.empty_like(tokens)
    before[which] = places_UT[:, :-1][exists]
    log_p, _ = token_answers(answers, (before // length, before % length), batch.input_ids.flatten()[tokens], width)
    return list(torch.split(log_p[which.cpu()], exists.sum(1).tolist()))


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
        SentenceMeasure(
            id=contrast.id,
            log_probabilities=tuple(next(values) for _ in contrast.variants),
            whole=start is not None or contrast.same_start,
            equal_length=contrast.equal_length,
        )
        for contrast in contrasts
    ]
