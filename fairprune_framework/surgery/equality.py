"""Whether two models answer alike: float32 for a while, logits at every position, and how far they lie apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from fairprune_framework.functional.divergence import kl_divergence
from fairprune_framework.models.head import Answers, answers_of

MAX_DIFFERENCE = 1e-3
MAX_KL = 1e-6
"""Between removed and masked, in float32 (measured: 8e-5 on logits, since matrix shapes change)."""
WIDE_VALUES = 2**22
"""Logits that are compared at once: 32 MiB in float64."""
FEW_VALUES = 2**20
"""The same where two models are in memory: 4 MiB in float32."""


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Compute in float32 for a while; bfloat16 and float16 weights come back bit by bit."""
    with ExitStack() as stack:
        for parameter in model.parameters():
            if parameter.dtype in (torch.bfloat16, torch.float16):
                dtype = parameter.dtype
                parameter.data = parameter.data.float()
                stack.callback(_to_dtype, parameter, dtype)
        yield


def _to_dtype(parameter: nn.Parameter, dtype: torch.dtype) -> None:
    parameter.data = parameter.data.to(dtype)


@torch.no_grad()
def logits_of(model: nn.Module, ids: Tensor) -> Tensor:
    """Logits (B, T, vocab) float32 of unpadded token ids, on the CPU."""
    device = next(model.parameters()).device
    return model(input_ids=ids.to(device), use_cache=False).logits.float().cpu()  # type: ignore[no-any-return]


@torch.no_grad()
def every_answer(model: nn.Module, ids: Tensor) -> Answers:
    """The forward of unpadded token ids (B, T), for logits at every position."""
    return answers_of(model, input_ids=ids.to(next(model.parameters()).device))


@torch.no_grad()
def every_logit(answers: Answers, most: int = 0) -> Iterator[Tensor]:
    """The logits at all positions, (M, vocab) float32 on the CPU, at most so many values at a time (0: `WIDE_VALUES`). What is behind
    the decoder is not pruned, so that they are the same before and after `pruned_in_place` ends."""
    rows, columns = answers.hidden_BTH.shape[:2]
    every = torch.arange(rows * columns, device=answers.hidden_BTH.device)
    for _, logits in answers.parts((every // columns, every % columns), answers.width, most or WIDE_VALUES):
        yield logits.float().cpu()


def compared(found: Answers, expected: Answers) -> tuple[float, float]:
    """Largest difference of logits, and mean KL(expected || found) in nats."""
    differences: list[float] = []
    divergences: list[Tensor] = []
    for logits, wanted in zip(every_logit(found), every_logit(expected), strict=True):
        log_p, log_q = (torch.log_softmax(each.double(), -1) for each in (wanted, logits))
        differences.append(float((logits - wanted).abs().max()))
        divergences.append(kl_divergence(log_p, log_q))
    return max(differences), float(torch.cat(divergences).mean())


def same_answers(found: Answers, expected: Answers) -> bool:
    """Whether all logits are equal to the bit; none of them is kept."""
    return all(torch.equal(*both) for both in zip(*(every_logit(each, FEW_VALUES) for each in (found, expected)), strict=True))
