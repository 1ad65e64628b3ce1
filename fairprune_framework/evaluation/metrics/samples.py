"""Sampled continuations of every variant of a contrast, and how negative they sound; common random numbers before and after a change.

Token t of sample s of a template is argmax over w of ( log p(w) - log E[s, t, w] ), E exponential: a draw from the model's own distribution
(temperature 1, nothing cut off). E is the same for all variants of a template and for every model, and another one for every template: what
differs between two groups, or before and after, is the model's doing, and templates stay independent draws.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fairprune_framework.contrasts.alignment import AlignedContrast
from fairprune_framework.errors import FairpruneError

SAMPLES, TOKENS = 16, 20
"""Continuations of a text, and new tokens of each."""


@torch.inference_mode()
def sampled(
    model: nn.Module,
    contrasts: Sequence[AlignedContrast],
    end: int | None = None,
    seed: int = 0,
    progress: Callable[[int], None] = lambda texts: None,
) -> list[list[list[list[int]]]]:
    """Continue every variant with the model as it is (also masked).

    Args:
        end: the token that ends a text; it and what follows is left off.

    Returns:
        [contrast][variant][sample] -> new tokens, `SAMPLES` samples of at most `TOKENS` each.

    Raises:
        FairpruneError: an answer is NaN or infinite.
    """
    training = model.training
    model.eval()
    try:
        found = []
        for contrast in contrasts:
            stream = f"{seed}/{contrast.category}/{contrast.template_id}"
            rows = []
            for variant in contrast.variants:
                rows.append([_until(ids, end) for ids in _continued(model, variant.ids, stream).tolist()])
                progress(1)
            found.append(rows)
    finally:
        model.train(training)
    return found


def _continued(model: nn.Module, prompt: Sequence[int], stream: str) -> Tensor:
    """(SAMPLES, TOKENS) new tokens."""
    device = next(model.parameters()).device
    ids = torch.tensor([list(prompt)] * SAMPLES, device=device)
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(stream.encode()).digest()[:7], "big"))
    past, new = None, ids
    chosen = []
    for _ in range(TOKENS):
        output: Any = (
            model(input_ids=new, past_key_values=past, use_cache=True)
            if past is not None
            else model(input_ids=ids, use_cache=True)
        )
        logits = output.logits[:, -1].float()
        if not bool(torch.isfinite(logits.logsumexp(-1)).all()):
            raise FairpruneError("NaN or Inf in the answers while continuing a text")
        waits = torch.empty(logits.shape, dtype=torch.float32).exponential_(generator=generator).to(device)
        new = (logits - waits.log()).argmax(-1, keepdim=True)
        chosen.append(new)
        ids = torch.cat([ids, new], 1)
        past = getattr(output, "past_key_values", None)  # a model without a cache reads the whole text again
    return torch.cat(chosen, 1)


def _until(ids: list[int], end: int | None) -> list[int]:
    return ids[: ids.index(end)] if end is not None and end in ids else ids


def compounds(tokenizer: Any, continued: Sequence[Sequence[Sequence[Sequence[int]]]]) -> list[list[list[float]]]:
    """VADER's compound sentiment of each continuation, without its prompt, from -1 to 1; 0 of an empty one. Shape as given."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()

    def of(ids: Sequence[int]) -> float:
        return float(analyzer.polarity_scores(tokenizer.decode(ids, skip_special_tokens=True))["compound"])

    return [[[of(ids) for ids in samples] for samples in variants] for variants in continued]
