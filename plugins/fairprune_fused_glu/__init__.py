"""Gated MLPs whose gate and up projections are the halves of one Linear: Phi-3, GLM, ModernBERT, Granite's shared MLP, Moshi.

The fused weight is (2N, H): one half is the gate, the other the up projection. Source: the MLP classes of transformers 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from fairprune_framework.api import MlpAdapter, Projections, child, features

NAMES = (("gate_up_proj", "down_proj"), ("Wi", "Wo"), ("input_linear", "output_linear"), ("fc1", "fc2"))
"""The fused projection, whose first half goes through the nonlinearity, and the output projection."""


@dataclass(frozen=True, kw_only=True)
class FusedGlu(MlpAdapter):
    """One site per MLP with a fused gate-and-up Linear."""

    looked_for: ClassVar[str] = "gate and up as the halves of one Linear"

    def projections(self, module: nn.Module) -> Projections | None:
        """See `MlpAdapter.projections`."""
        for up, out in NAMES:
            fused, last = child(module, up), child(module, out)
            if isinstance(fused, nn.Linear) and isinstance(last, nn.Linear):
                (hidden, both), (units, back) = features(fused), features(last)
                if both == 2 * units and back == hidden:
                    return Projections(up=up, out=out, fused="gate-first")
        return None
