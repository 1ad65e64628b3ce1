"""Measured before an audit: the rate of bare forwards, the largest micro-batch that fits, and an estimate of the work."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fairprune_framework.api.decoders import text_decoder
from fairprune_framework.auditing.batches import BatchSpec
from fairprune_framework.utilities.wording import in_time, number_of

CPU_TOKENS = 512
"""Padded tokens of a micro-batch on a CPU: more is no faster there."""
MOST_TOKENS = 1 << 17
TIMED = 3
"""Micro-batches that are timed."""


def limit_of(model: nn.Module, batch_specs: Sequence[BatchSpec], device: torch.device) -> float | None:
    """Padded tokens per second of bare trunk forwards; None where too few are there."""
    if len(batch_specs) < 4 * TIMED:
        return None
    chosen = [batch_specs[len(batch_specs) * (2 * i + 1) // (2 * TIMED)] for i in range(TIMED)]
    trunk = text_decoder(model)
    seconds = tokens = 0.0
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for turn, spec in enumerate([chosen[0], *chosen]):
                batch = spec.micro_batch(1).to(device)
                began = time.perf_counter()
                trunk(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                if turn:  # the first only warms up
                    seconds += time.perf_counter() - began
                    tokens += batch.tokens
    except torch.OutOfMemoryError:
        return None
    finally:
        model.train(training)
    return tokens / seconds


def find_max_tokens(forward: Callable[[int, int], Any], width: int, most: int = MOST_TOKENS) -> int:
    """The largest number of padded tokens, halved from `most` until a forward fits, and once more to leave room for sums.

    Args:
        forward: computes (rows, width) tokens; raises `torch.OutOfMemoryError` where they do not fit.
        width: tokens of the longest text.
    """
    max_tokens = most
    while max_tokens > width:
        try:
            forward(max(max_tokens // width, 1), width)
        except torch.OutOfMemoryError:
            max_tokens //= 2
            continue
        break
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return max(max_tokens // 2, width)


def max_tokens_on(model: nn.Module, device: torch.device, width: int, gradients: bool) -> int:
    """Padded tokens of a micro-batch on a device; passes with gradients keep every activation and get a quarter."""
    if device.type != "cuda":
        return CPU_TOKENS
    trunk = text_decoder(model)

    def forward(rows: int, columns: int) -> None:
        with torch.inference_mode():
            trunk(input_ids=torch.zeros((rows, columns), dtype=torch.long, device=device), use_cache=False)

    max_tokens = find_max_tokens(forward, width)
    return max(max_tokens // 4, width) if gradients else max_tokens


def memory_used(device: torch.device) -> float:
    """Peak memory so far in bytes: of the device, or of this process."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What one pass will compute, estimated from its first window."""

    forwards: float
    tokens: float
    """Padded."""
    backward: bool

    @classmethod
    def of(cls, batch_specs: Sequence[BatchSpec], share: float, backward: bool) -> Planned:
        """`share`: how many such windows there are."""
        tokens = sum(spec.tokens for spec in batch_specs) * share
        return cls(forwards=len(batch_specs) * share, tokens=tokens, backward=backward)


def announcement(
    contrasts: int, tokens: int, planned: Sequence[Planned], limit: float | None, ranks: int, done: int, left: float
) -> str:
    """What an audit is about to do, in one line.

    Args:
        contrasts: that may feed scores; `tokens`: of all their variants.
        planned: the passes.
        limit: tokens per second of a bare forward; a backward takes more, so that the time is a lower bound where there is one.
        done: contrasts of all passes that an earlier session did; `left`: the share that is still to do.
    """
    forwards, computed = max(1, round(sum(each.forwards for each in planned))), sum(each.tokens for each in planned)
    text = (
        f"{number_of(contrasts, 'contrast')}, {number_of(tokens, 'token')}, about {number_of(forwards, 'forward')} of "
        f"{computed:,.0f} padded tokens in all"
    )
    if len(planned) > 1:
        text += f" ({len(planned)} passes)"
    if limit:
        backward = any(each.backward for each in planned)
        text += f"; expected {'at least ' if backward else ''}{in_time(computed * max(left, 0.0) / limit / ranks)} at {limit:,.0f} tokens/s"
        if ranks > 1:
            text += f" on each of {ranks} ranks"
    if done:
        text += f"; {done:,} done before"
    return text
