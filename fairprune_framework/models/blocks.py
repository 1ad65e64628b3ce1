"""Where the tensors of safetensors files lie in a model's parameters: mostly one in each, in some families several.

transformers 5 packs the experts of a layer, which the files of many families hold one by one, when it loads them. Its own way back is
carried out here on the numbers of rows in place of weights, so that no family's layout is written down a second time.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fairprune_framework.api.types import Slice
from fairprune_framework.errors import UserError
from fairprune_framework.models.saving import partners_of
from fairprune_framework.models.weights import saved_tensors

WIDE = 2
"""Columns of the numbers of rows: transformers 5.20 drops axes of length 1 on its way back."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """Where a tensor of a file lies: it is `parameter[lead][start:stop]`."""

    parameter: str
    lead: tuple[int, ...] = ()
    start: int = 0
    stop: int

    def shape(self, like: Tensor) -> tuple[int, ...]:
        """Of the tensor, where the parameter is as `like`."""
        rest = tuple(like.shape[len(self.lead) :])
        return (self.stop - self.start, *rest[1:]) if rest else ()

    def holds_all_rows(self, shape: tuple[int, ...]) -> bool:
        """Whether it is all of `parameter[lead]`, of a parameter of this shape."""
        return len(shape) == len(self.lead) or self.stop - self.start == shape[len(self.lead)]

    def within(self, slice_: Slice, units: int, shape: tuple[int, ...]) -> Slice | None:
        """A slice of the parameter, of so many units, as one of this tensor, under the name `slice_.parameter`; None: it is not there."""
        if not self.lead and self.holds_all_rows(shape):
            return slice_
        if slice_.lead != self.lead:
            return None
        axis = slice_.axis - len(self.lead)
        if axis > 0:
            return replace(slice_, axis=axis, lead=()) if self.holds_all_rows(shape) else None
        start = slice_.start - self.start
        inside = start >= 0 and start + (units - 1) * slice_.step + slice_.width <= self.stop - self.start
        return replace(slice_, axis=axis, start=start, lead=()) if inside else None


class Layout:
    """Where the tensors of files lie in the parameters and saved buffers of a model.

    Args:
        model: on the meta device.
        stored: the names in the files.

    Raises:
        KeyError: the files hold a tensor of the model under no name that is known, or its numbers in another order.
    """

    def __init__(self, model: nn.Module, stored: Collection[str]) -> None:
        self.like = dict(saved_tensors(model))
        """Name in the model -> a tensor of its shape and dtype, in the order of `saved_tensors`."""
        self.blocks = _blocks_of(model, self.like, stored)
        """Tensor of a file -> where it lies."""
        self.stored_as: dict[str, list[str]] = {}
        """Name in the model -> names in the files, in the order of memory."""
        for name, block in self.blocks.items():
            self.stored_as.setdefault(block.parameter, []).append(name)

    def shape(self, stored: str) -> tuple[int, ...]:
        """Of a tensor of the files."""
        block = self.blocks[stored]
        return block.shape(self.like[block.parameter])

    def dtype(self, stored: str) -> torch.dtype:
        """In which a tensor of the files is loaded."""
        return self.like[self.blocks[stored].parameter].dtype

    def within(self, slice_: Slice, units: int) -> Slice:
        """A slice of so many units, as one of a tensor of the files.

        Raises:
            UserError: no tensor of the files holds all of it.
        """
        shape = tuple(self.like[slice_.parameter].shape)
        for stored in self.stored_as[slice_.parameter]:
            if (found := self.blocks[stored].within(slice_, units, shape)) is not None:
                return replace(found, parameter=stored)
        raise UserError(f"no tensor of the files holds the {slice_.role} weights of {slice_.parameter} that are of one neuron")


def _blocks_of(model: Any, like: Mapping[str, Tensor], stored: Collection[str]) -> dict[str, Block]:
    """Tensor of a file -> where it lies, for the tensors of a model in their order, and in that of the memory; raises as `Layout`."""
    if (partners := partners_of(like, stored)) is not None:
        return {partners[name]: _all_of(name, value) for name, value in like.items()}
    found: dict[str, Block] = {}
    for blocks in _reverted(model, like):
        found |= blocks
    if (partners := partners_of(found, stored)) is None:
        raise KeyError(next((name for name in found if name not in stored), "a tensor"))
    return {partners[name]: block for name, block in found.items()}


def _all_of(name: str, value: Tensor) -> Block:
    return Block(parameter=name, stop=value.shape[0] if value.ndim else 1)


def _reverted(model: Any, like: Mapping[str, Tensor]) -> Iterator[dict[str, Block]]:
    """For each tensor of a model what transformers makes of it in a file; raises as `Layout` where that is no stretch of its rows."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import PrefixChange, revert_weight_conversion

    conversions = [each for each in get_model_conversion_mapping(model, add_legacy=False) if not isinstance(each, PrefixChange)]
    own = getattr(model, "_weight_conversions", None)
    model._weight_conversions = conversions or None  # so that they are not put together anew for each tensor
    try:
        for name, value in like.items():
            rows = value.shape[:2] if value.ndim > 2 else value.shape[:1]
            columns = [1] * (value.ndim - len(rows))
            numbers = torch.arange(math.prod(rows)).reshape(*rows, *columns).expand(*rows, *(WIDE * each for each in columns))
            try:
                stored = revert_weight_conversion(model, {name: numbers})
            except Exception:  # a tensor alone is not what its conversion is of
                stored = {}
            if (blocks := _stretches(name, value, stored)) is None:
                raise KeyError(name)
            yield blocks
    finally:
        model._weight_conversions = own


def _stretches(name: str, value: Tensor, stored: Mapping[str, Tensor]) -> dict[str, Block] | None:
    """Tensor of a file -> its stretch of rows, in their order, where all of them are the whole; from the numbers of its rows, each in
    `WIDE` columns."""
    inner, columns = (value.shape[1], value.ndim - 2) if value.ndim > 2 else (1, max(value.ndim - 1, 0))
    found: dict[str, Block] = {}
    end = 0
    for theirs, numbers in sorted(stored.items(), key=lambda each: int(each[1].reshape(-1)[0])):
        count = numbers.numel() // WIDE**columns
        if not torch.equal(numbers.reshape(-1), torch.arange(end, end + count).repeat_interleave(WIDE**columns)):
            return None
        if numbers.ndim == value.ndim and end % inner == 0 and count % inner == 0:
            found[theirs] = Block(parameter=name, start=end // inner, stop=(end + count) // inner)
        elif value.ndim > 2 and numbers.ndim == value.ndim - 1 and end % inner + count <= inner:
            found[theirs] = Block(parameter=name, lead=(end // inner,), start=end % inner, stop=end % inner + count)
        else:
            return None
        end += count
    return found if end == math.prod(value.shape[:2] if value.ndim > 2 else value.shape[:1]) else None
