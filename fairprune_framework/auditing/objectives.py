"""Passes with an objective: the full model under gradients, and what an objective sees of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fairprune_framework.api.outputs import Outputs
from fairprune_framework.auditing.merging import members_of
from fairprune_framework.auditing.micro_batch import MicroBatch
from fairprune_framework.errors import ContractViolation, FairpruneError, PluginError, shown
from fairprune_framework.models.head import Answers, answers_of, over_positions
from fairprune_framework.models.work import backwards
from fairprune_framework.utilities.aside import plugin_call


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


def objectives_of(model: nn.Module, batch: MicroBatch) -> list[Tensor]:
    """Run the full model once on a micro-batch of one category and apply the objective of each of its passes that has one.

    Returns: (C,) each, in the order of the passes, on the graph of that forward.

    Raises:
        BrokenPlugin: an objective raised.
        ContractViolation: it returned another shape.
    """
    steps = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device)
    mask = (steps < batch.length.unsqueeze(-1)) & batch.present.unsqueeze(-1)
    given: dict[str, Any] = {
        "tokens": batch.input_ids[batch.text],
        "mask": mask,
        "attribute": batch.attribute,
        "lean": batch.lean,
        "rare": torch.zeros_like(mask) if batch.rare is None else batch.rare,
        "right": batch.right,
    }
    asked = [(pass_.objective, pass_.logits) for pass_ in members_of(batch.pass_) if pass_.objective is not None]
    with torch.enable_grad(), frozen(model), backwards(len(asked)):
        at_last, everywhere = _outputs(model, batch, given)
        return [
            _checked(objective, everywhere if logits == "all" and everywhere is not None else at_last, len(batch.ids))
            for objective, logits in asked
        ]


def _outputs(model: nn.Module, batch: MicroBatch, given: Mapping[str, Any]) -> tuple[Outputs, Outputs | None]:
    """What one forward says at the last token of each text; and at every token, where some pass asks for it."""
    attention = batch.attention_mask if batch.padded else None
    inputs = {"input_ids": batch.input_ids, "attention_mask": attention}
    last = batch.attention_mask.sum(1) - 1
    wanted = {pass_.logits for pass_ in members_of(batch.pass_) if pass_.objective is not None}
    if "all" not in wanted:
        with last_token_only(model, lambda: last):
            return Outputs(logits=model(**inputs, use_cache=False).logits[:, -1][batch.text], **given), None
    rows = torch.arange(len(last), device=last.device)
    everywhere: Outputs
    if _is_sharded(model):
        logits = model(**inputs, use_cache=False).logits
        everywhere, at_last = Outputs(logits=logits[batch.text], **given), logits[rows, last]
    else:
        answers = answers_of(model, **inputs)
        everywhere = PositionOutputs(answers, batch.text, given)
        if wanted == {"all"}:
            return everywhere, everywhere
        at_last = answers.logits((rows, last))
    return Outputs(logits=at_last[batch.text], **given), everywhere


def _checked(objective: Callable[[Outputs], Tensor], outputs: Outputs, contrasts: int) -> Tensor:
    name = f"objective {shown(objective)}"
    try:
        with plugin_call(name, passing=(torch.OutOfMemoryError,)):
            objective_C = objective(outputs)
        if not isinstance(objective_C, Tensor) or objective_C.shape != (contrasts,):
            got = tuple(objective_C.shape) if isinstance(objective_C, Tensor) else type(objective_C).__name__
            raise ContractViolation(f"{name} must return ({contrasts},). Got {got} instead.")
    except PluginError as error:
        error.by = objective
        raise
    return objective_C


def _is_sharded(model: nn.Module) -> bool:
    """Ranks hold parts of its weights, and compute in lockstep: none may run the head more often than they do."""
    return any(hasattr(parameter, "placements") for parameter in model.parameters())


class PositionOutputs(Outputs):
    """Outputs that make the logits of few positions at a time, and all of them only where `logits` is looked at.

    Args:
        answers: of the forward, with its graph.
        text: (C, V) int64, row of each variant.
        given: the other fields.
    """

    def __init__(
        self,
        answers: Answers | None = None,
        text: Tensor | None = None,
        given: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> None:
        self.__dict__.update({"_answers": answers, "_text": text, **(given or {}), **fields})

    def __getattr__(self, name: str) -> Tensor:
        """`logits`, when it is first asked for."""
        answers, text = self.__dict__.get("_answers"), self.__dict__.get("_text")
        if name != "logits" or answers is None or text is None:
            raise AttributeError(name)
        rows, columns = answers.hidden_BTH.shape[:2]
        every = torch.arange(rows * columns, device=text.device)
        logits = answers.logits((every // columns, every % columns))
        self.__dict__["logits"] = logits.view(rows, columns, -1)[text]
        return self.logits

    def over_positions(self, function: Callable[[Tensor, Tensor], Tensor], where: Tensor) -> Tensor:
        """See `Outputs.over_positions`."""
        answers: Answers | None = self.__dict__.get("_answers")
        text_CV: Tensor | None = self.__dict__.get("_text")
        if answers is None or text_CV is None:
            return super().over_positions(function, where)
        places = where.flatten().nonzero().squeeze(1)
        length = where.shape[-1]
        text = text_CV.flatten()[places // length]
        values = over_positions(answers, (text, places % length), lambda logits, part: function(logits, places[part]))
        found = torch.zeros(where.numel(), dtype=values.dtype, device=values.device)
        return found.index_put((places,), values).view(where.shape)


def gradients(objective_C: Tensor, taps: Sequence[Tensor], keep: bool = False) -> list[Tensor]:
    """d sum(objective) / d tap for every tap; zero where the objective does not depend on it.

    Args:
        keep: the graph, for another objective on it.
    """
    ones = torch.ones_like(objective_C)
    grads = torch.autograd.grad(objective_C, list(taps), ones, allow_unused=True, retain_graph=keep)
    return [torch.zeros_like(tap) if grad is None else grad for tap, grad in zip(taps, grads, strict=True)]
