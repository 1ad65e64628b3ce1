"""What a recovery training may not change: the weights of planned neurons that are still in the tensors.

`remove` takes neurons out of the tensors, and what is not there cannot be trained. Those that are stored as zeros (the rest of an
uneven `remove`, `zero`) or scaled keep, in every weight of theirs, the value that the plan left: after each step it is put back, and
the parts of a LoRA adapter that would change it are set to zero, so that the merged adapter does not either.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fairprune_framework.api.types import Site, Slice
from fairprune_framework.errors import VerificationFailed
from fairprune_framework.surgery.restoration import Restoration
from fairprune_framework.surgery.slices import part, positions


def remaining(restoration: Restoration) -> dict[str, tuple[int, ...]]:
    """Site -> planned units that the pruned model still has, by their index in it: those cut before them are gone.

    Args:
        restoration: of the pruned model.
    """
    return {
        site: tuple(unit - bisect_left(sorted(cut), unit) for unit in overwritten)
        for site, (cut, overwritten) in restoration.units.items()
        if overwritten
    }


@dataclass(frozen=True)
class _Piece:
    """Positions of a parameter, and what stands there."""

    slice: Slice
    positions: Tensor
    values: Tensor


class Held:
    """The values of some units' weights as they are now; `put_back` writes them again.

    Args:
        model: whose parameters they are; found again by name, on whatever device they are then.
        units: site -> indices.
    """

    def __init__(self, model: nn.Module, sites: Mapping[str, Site], units: Mapping[str, tuple[int, ...]]) -> None:
        self.count = sum(map(len, units.values()))
        self._pieces: dict[str, list[_Piece]] = {}
        for name, chosen in units.items():
            for slice_ in sites[name].slices:
                tensor, axis = part(model.get_parameter(slice_.parameter).detach(), slice_)
                where = positions(slice_, torch.tensor(chosen, dtype=torch.long, device=tensor.device))
                piece = _Piece(slice_, where, tensor.index_select(axis, where).clone())
                self._pieces.setdefault(slice_.parameter, []).append(piece)

    @torch.no_grad()
    def put_back(self, model: nn.Module) -> None:
        """Make the model's planned neurons what they were, also under a LoRA adapter."""
        modules = dict(model.named_modules())
        for name, pieces in self._pieces.items():
            path, _, attribute = name.rpartition(".")
            module: Any = modules[path]
            if hasattr(module, "lora_A"):
                if attribute == "weight":
                    _without_adapter(module, pieces)
                continue
            for piece in pieces:
                tensor, axis = part(getattr(module, attribute).data, piece.slice)
                tensor.index_copy_(axis, piece.positions.to(tensor.device), piece.values.to(tensor.device, tensor.dtype))

    def check(self, model: nn.Module) -> None:
        """Raise `VerificationFailed` where a held weight of a model without adapters is another one now."""
        for name, pieces in self._pieces.items():
            for piece in pieces:
                tensor, axis = part(model.get_parameter(name).detach(), piece.slice)
                now = tensor.index_select(axis, piece.positions.to(tensor.device))
                if not torch.equal(now, piece.values.to(now.device, now.dtype)):
                    raise VerificationFailed(f"the training changed planned neurons in {name}. Nothing was kept.")


def _without_adapter(module: Any, pieces: list[_Piece]) -> None:
    """Set to zero what the product B A adds at these rows or columns of a weight: rows of B, columns of A."""
    base = module.get_base_layer()
    outputs = 0 if isinstance(base, nn.Linear) else 1  # Conv1D of transformers is (in, out)
    for piece in pieces:
        for key in module.lora_A:
            if piece.slice.axis == outputs:
                weight = module.lora_B[key].weight
                weight.data.index_fill_(0, piece.positions.to(weight.device), 0)
            else:
                weight = module.lora_A[key].weight
                weight.data.index_fill_(1, piece.positions.to(weight.device), 0)
