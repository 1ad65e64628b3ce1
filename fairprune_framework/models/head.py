"""One forward of a model, and logits of any of its positions afterwards, few at a time: (tokens x vocabulary) is never in memory.

The forward is the model's own, with a head that sees one position. Its input at all positions is kept; logits are made from it by the
model's own code after the decoder, so that soft caps and logit scales of a family need no code here: the model is called once more, with
a decoder that computes nothing and a head whose input is replaced by the positions that are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fairprune_framework.api.decoders import text_decoder
from fairprune_framework.errors import FairpruneError

VALUES = 2**24
"""Logits that are made at once: 64 MiB in float32, and 341 positions of a vocabulary of 49,152."""

Positions = tuple[Tensor, Tensor]
"""Rows and columns of a forward, (M,) each."""


class Answers:
    """What one forward gave."""

    def __init__(self, model: nn.Module, decoder: nn.Module, output: Any, hidden_BTH: Tensor, inputs: dict[str, Any]) -> None:
        self._model, self._decoder, self._output, self._inputs = model, decoder, output, inputs
        self.hidden_BTH = hidden_BTH
        """Input of the head at every position."""
        self.width = vocabulary_of(model)
        """Of the logits."""

    def logits(self, positions: Positions) -> Tensor:
        """(M, W) logits of some positions, in the model's dtype."""
        return self.logits_from(self.hidden_BTH[positions])

    def logits_from(self, hidden_MH: Tensor) -> Tensor:
        """(M, W) logits of vectors that the head is given in place of its own."""

        def replaced(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (hidden_MH.unsqueeze(0), *args[1:])

        handle = _head_of(self._model).register_forward_pre_hook(replaced)
        try:
            with _answering(self._decoder, self._output):
                logits: Tensor = self._model(**self._inputs).logits[0]
        finally:
            handle.remove()
        return logits

    def parts(self, positions: Positions, width: int, most: int | None = None) -> Iterator[tuple[slice, Tensor]]:
        """The logits of many positions in parts, each with its place among them.

        Args:
            width: of the vocabulary.
            most: logits of a part; None: `VALUES`.
        """
        step = max(1, (VALUES if most is None else most) // width)
        for start in range(0, len(positions[0]), step):
            part = slice(start, start + step)
            yield part, self.logits((positions[0][part], positions[1][part]))


def over_positions(answers: Answers, positions: Positions, function: Callable[[Tensor, slice], Tensor]) -> Tensor:
    """A number from the logits of each position, (M,), with its gradient; at most `VALUES` logits are in memory.

    The gradient of each number is taken while its logits are there, and what is kept of it is as large as the head's input.

    Args:
        function: the logits of a part of the positions and its place among them -> a number of each row, of that row alone.
    """
    hidden_MH = answers.hidden_BTH[positions]
    if not hidden_MH.requires_grad:
        parts = [function(logits, part) for part, logits in answers.parts(positions, answers.width)]
        return torch.cat(parts) if parts else hidden_MH.new_zeros(0, dtype=torch.promote_types(hidden_MH.dtype, torch.float32))
    values: list[Tensor] = []
    slopes_MH = torch.empty_like(hidden_MH, requires_grad=False)
    step = max(1, VALUES // answers.width)
    for start in range(0, len(hidden_MH), step):
        part = slice(start, start + step)
        leaf = hidden_MH[part].detach().requires_grad_()
        found = function(answers.logits_from(leaf), part)
        slopes_MH[part] = torch.autograd.grad(found.sum(), leaf)[0] if found.requires_grad else 0
        values.append(found.detach())
    narrow = torch.promote_types(hidden_MH.dtype, torch.float32)
    given = torch.cat(values) if values else hidden_MH.new_zeros(0, dtype=narrow, requires_grad=False)
    return _Known.apply(hidden_MH, given, slopes_MH)  # type: ignore[no-any-return,no-untyped-call]


class _Known(torch.autograd.Function):
    """Numbers of rows whose gradients are known."""

    @staticmethod
    def forward(ctx: Any, hidden_MH: Tensor, values_M: Tensor, slopes_MH: Tensor) -> Tensor:
        ctx.save_for_backward(slopes_MH)
        return values_M.clone()

    @staticmethod
    def backward(ctx: Any, upstream_M: Tensor) -> tuple[Tensor, None, None]:
        (slopes_MH,) = ctx.saved_tensors
        return slopes_MH * upstream_M.to(slopes_MH.dtype).unsqueeze(1), None, None


def answers_of(model: nn.Module, **inputs: Any) -> Answers:
    """Do one forward.

    Args:
        inputs: `input_ids` (B, T) and what else the model takes.

    Raises:
        FairpruneError: the model has no head, or one that does not see a vector for each token.
    """
    decoder, seen, outputs = text_decoder(model), list[Tensor](), list[Any]()

    def one_position(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if args[0].shape[:2] != inputs["input_ids"].shape:
            raise FairpruneError(
                f"{type(model).__name__} gives its head no vector for each token: log-probabilities cannot be read"
            )
        seen.append(args[0])
        return (args[0][:1, :1], *args[1:])

    inputs = {**inputs, "use_cache": False}
    handles = [_head_of(model).register_forward_pre_hook(one_position)]
    handles.append(decoder.register_forward_hook(lambda _module, _args, output: outputs.append(output)))
    try:
        model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return Answers(model, decoder, outputs[-1], seen[-1], inputs)


def positions_before(lengths: Sequence[int], device: Any) -> Positions:
    """The positions that predict the tokens of right-padded texts but their first: row by row, `lengths - 1` of each."""
    rows = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths) - 1)
    columns = torch.cat([torch.arange(length - 1) for length in lengths])
    return rows.to(device), columns.to(device)


def vocabulary_of(model: nn.Module) -> int:
    """Width of the logits."""
    return int(_head_of(model).weight.shape[0])


def output_embeddings(model: nn.Module) -> Any:
    """The head; None where there is none."""
    find: Any = getattr(model, "get_output_embeddings", None)
    return None if find is None else find()


def _head_of(model: nn.Module) -> Any:
    head = output_embeddings(model)
    if head is None:
        raise FairpruneError(f"{type(model).__name__} has no output embeddings: log-probabilities cannot be read")
    return head


@contextmanager
def _answering(decoder: nn.Module, output: Any) -> Iterator[None]:
    """The decoder gives what it gave before, and computes nothing."""
    own = decoder.__dict__.get("forward")  # set by libraries that spread a model over devices

    def answered(*args: Any, **kwargs: Any) -> Any:
        return output

    answered.computes_nothing = True  # type: ignore[attr-defined]  # for those who count forwards
    decoder.forward = answered
    try:
        yield
    finally:
        if own is None:
            del decoder.forward
        else:
            decoder.forward = own
