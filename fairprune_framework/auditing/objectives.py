"""Passes with an objective: the full model under gradients, and what an objective sees of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fairprune_framework.api.interfaces import Outputs
from fairprune_framework.auditing.micro_batch import MicroBatch
from fairprune_framework.errors import ContractViolation, FairpruneError


@contextmanager
def last_token_only(model: nn.Module, last: Callable[[], Tensor]) -> Iterator[None]:
    """The head sees the last token of each text alone; whatever the model does to logits afterwards stays as it is.

    Args:
        last: gives the (B,) index of each text's last token in the current batch.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    if head is None:
        raise FairpruneError(f"{type(model).__name__} has no output embeddings: next-token distributions cannot be read")

    def gather(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0]
        return (hidden[torch.arange(hidden.shape[0], device=hidden.device), last()].unsqueeze(1), *args[1:])

    handle = head.register_forward_pre_hook(gather)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient: graphs begin at the taps."""
    asked = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in asked:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)


def objective_of(model: nn.Module, batch: MicroBatch) -> Tensor:
    """Run the full model on a micro-batch of one category and apply the objective of its pass: (C,), with its graph.

    Raises:
        ContractViolation: the objective returned another shape.
    """
    objective = batch.pass_.objective
    assert objective is not None
    last = batch.attention_mask.sum(1) - 1
    only_last = last_token_only(model, lambda: last) if batch.pass_.logits == "last" else nullcontext()
    with torch.enable_grad(), frozen(model), only_last:
        mask = None if bool(batch.attention_mask.all()) else batch.attention_mask
        logits = model(input_ids=batch.input_ids, attention_mask=mask, use_cache=False).logits
        shown = logits[:, -1][batch.text] if batch.pass_.logits == "last" else logits[batch.text]
        steps = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device)
        mask = (steps < batch.length.unsqueeze(-1)) & batch.present.unsqueeze(-1)
        outputs = Outputs(
            logits=shown,
            tokens=batch.input_ids[batch.text],
            mask=mask,
            attribute=batch.attribute,
            lean=batch.lean,
            rare=torch.zeros_like(mask) if batch.rare is None else batch.rare,
            right=batch.right,
        )
        objective_C = objective(outputs)
    if not isinstance(objective_C, Tensor) or objective_C.shape != (len(batch.ids),):
        got = tuple(objective_C.shape) if isinstance(objective_C, Tensor) else type(objective_C).__name__
        raise ContractViolation(f"objective {objective!r} must return ({len(batch.ids)},). Got {got} instead.")
    return objective_C


def gradients(objective_C: Tensor, taps: Sequence[Tensor]) -> list[Tensor]:
    """d sum(objective) / d tap for every tap; zero where the objective does not depend on it."""
    grads = torch.autograd.grad(objective_C, list(taps), torch.ones_like(objective_C), allow_unused=True)
    return [torch.zeros_like(tap) if grad is None else grad for tap, grad in zip(taps, grads, strict=True)]
