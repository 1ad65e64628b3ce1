"""Gated MLPs made of three plain Linears: Llama, Mistral, Qwen2/3, Gemma 1-3 and every other model of that shape.

Found by shape: a module with two Linears H -> N and one N -> H; which of the two is the gate is told by its name, and the core
confirms each site causally. Shared experts and dense layers beside routed experts are MLPs of this shape too: with `experts` for the
routed ones, they cover DeepSeek, Qwen2-MoE and their like. Source: the `*MLP` classes of transformers 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from fairprune_framework.api import MlpAdapter, Projections, linear_trio


@dataclass(frozen=True, kw_only=True)
class Glu(MlpAdapter):
    """One site per gated MLP of three Linears."""

    looked_for: ClassVar[str] = "gate, up and down as three Linears"

    def projections(self, module: nn.Module) -> Projections | None:
        """See `MlpAdapter.projections`."""
        return linear_trio(module)
