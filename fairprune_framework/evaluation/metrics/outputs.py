"""What attention and MLP of every layer give at the first tokens of a contrast's texts, read in the forward that measures it anyway."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from fairprune_framework.api.types import Site, Tap
from fairprune_framework.auditing.observation import Geometry
from fairprune_framework.contrasts.alignment import AlignedContrast

MOST_TOKENS = 64
"""Of each text, from its first."""
TAPS: frozenset[Tap] = frozenset({"attention", "mlp"})


@dataclass(kw_only=True)
class Outputs:
    """Of one contrast in one model."""

    tensors: dict[Tap, dict[int, Tensor]] = field(default_factory=dict)
    """tap -> layer -> `(R, H)` float16 on the CPU: the tokens of the first variant, then of the second, and so on."""
    cut: int = 0
    """Values that float16 cannot hold, cut to its largest number."""

    def stacked(self) -> dict[Tap, NDArray[Any]]:
        """tap -> `(L, R, H)` float16, layers in their order."""
        return {
            tap: torch.stack([by_layer[layer] for layer in sorted(by_layer)]).numpy() for tap, by_layer in self.tensors.items()
        }

    @property
    def shapes(self) -> dict[tuple[Tap, int], torch.Size]:
        """(tap, layer) -> the shape."""
        return {(tap, layer): value.shape for tap, by_layer in self.tensors.items() for layer, value in by_layer.items()}


class OutputReader:
    """Keeps the outputs of the contrasts that are wanted; others of a micro-batch are passed over.

    Args:
        contrasts: those that are wanted.
    """

    def __init__(self, contrasts: Iterable[AlignedContrast] = ()) -> None:
        self.outputs: dict[str, Outputs] = {}
        """id -> outputs."""
        self.wanted = {contrast.id for contrast in contrasts}

    def lacks(self, contrasts: Iterable[AlignedContrast]) -> list[AlignedContrast]:
        """Those of the contrasts that were not seen."""
        return [contrast for contrast in contrasts if contrast.id not in self.outputs]

    def read(self, site: Site, tap: Tap, values: Tensor, geometry: Geometry) -> None:
        """Take the values of one tap of one site in one micro-batch, a row for each of its tokens: of a layer the first site's."""
        batch = geometry.batch
        if tap not in TAPS or values.shape[0] != batch.tokens:  # the output of the layer's block, not of one expert
            return
        for row, name in enumerate(batch.ids):
            if name not in self.wanted:
                continue
            outputs = self.outputs.setdefault(name, Outputs())
            by_layer = outputs.tensors.setdefault(tap, {})
            if site.layer in by_layer:
                continue
            kept_VT = geometry.mask_CVT[row, :, :MOST_TOKENS]
            value_RH = values[geometry.tokens_CVT[row, :, :MOST_TOKENS][kept_VT]].float().cpu()
            largest = torch.finfo(torch.float16).max
            outputs.cut += int((value_RH.abs() > largest).sum())
            by_layer[site.layer] = value_RH.clamp_(-largest, largest).half()
