"""Gated MLPs of three Linears with an RMS norm between the neurons and the output projection: BitNet.

Neurons are tapped and masked before the norm. A neuron that is gone leaves the norm's mean as it is, but for the number that it
divides by: the core multiplies the norm's weights by sqrt(N / kept). Source: `BitNetMLP` of transformers 5.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import nn

from fairprune_framework.api import MlpAdapter, Projections, child, features, linear_trio


@dataclass(frozen=True, kw_only=True)
class InnerNormGlu(MlpAdapter):
    """One site per gated MLP with an inner norm."""

    looked_for: ClassVar[str] = "gate, up and down as three Linears, and a norm over the neurons"

    def projections(self, module: nn.Module) -> Projections | None:
        """See `MlpAdapter.projections`."""
        trio = linear_trio(module)
        if trio is None:
            return None
        columns = features(child(module, trio.out))[0]
        norms = [name for name, inner in module.named_children() if _is_rms_norm(inner, columns)]
        return replace(trio, inner_norm=norms[0]) if len(norms) == 1 else None


def _is_rms_norm(module: Any, columns: int) -> bool:
    weight = getattr(module, "weight", None)
    named = "RMSNorm" in type(module).__name__
    return (
        named
        and isinstance(weight, nn.Parameter)
        and tuple(weight.shape) == (columns,)
        and getattr(module, "bias", None) is None
    )
