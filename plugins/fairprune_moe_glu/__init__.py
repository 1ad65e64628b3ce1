"""Experts held as 3-D parameters, `gate_up_proj` (E, 2N, H) and `down_proj` (E, H, N): Mixtral and its like.

transformers runs all experts as one grouped matrix product, so that there is no inner module to hook. While tapped, the
experts' forward is replaced by a loop over the experts that does the same arithmetic and shows each expert's tokens; statistics
are therefore over the tokens that were routed to an expert. Source: `MixtralExperts` of transformers 5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fairprune_framework.api import (
    EXPERT_TAPS,
    ArchitectureAdapter,
    Handler,
    Show,
    Site,
    Slice,
    Tap,
    UnsupportedArchitecture,
    experts_tapped,
    layer_index,
    layer_taps,
    text_config,
)

FUSED, OUT = "gate_up_proj", "down_proj"
TAPS: frozenset[Tap] = EXPERT_TAPS | {"mlp_input", "mlp"}
GROUPED = 8
"""Neurons: rows of a grouped matrix product must be multiples of 16 bytes, and 8 of them are in every dtype."""


def is_experts(module: nn.Module) -> bool:
    """Whether a module holds gated experts as two 3-D parameters in the (E, out, in) layout, without biases."""
    fused, out = getattr(module, FUSED, None), getattr(module, OUT, None)
    if not (isinstance(fused, nn.Parameter) and isinstance(out, nn.Parameter) and fused.ndim == out.ndim == 3):
        return False
    plain = not getattr(module, "is_transposed", False) and getattr(module, "is_concatenated", True)
    plain = plain and not getattr(module, "has_bias", False) and not getattr(module, "has_post_expert_norm", False)
    count, hidden, units = out.shape
    return bool(plain and tuple(fused.shape) == (count, 2 * units, hidden))


@dataclass(frozen=True, kw_only=True)
class MoeGlu(ArchitectureAdapter):
    """One site per expert."""

    def sites(self, model: nn.Module) -> Sequence[Site]:
        """See `ArchitectureAdapter.sites`."""
        sites: list[Site] = []
        config = text_config(model)
        for name, module in model.named_modules():
            layer = layer_index(name)
            if layer is None or not is_experts(module):
                continue
            count, _, units = getattr(module, OUT).shape
            field = next((f for f in ("moe_intermediate_size", "intermediate_size") if getattr(config, f, None) == units), None)
            for expert in range(count):
                sites.append(
                    Site(
                        name=f"{name}.{expert}",
                        kind="expert",
                        layer=layer,
                        units=units,
                        slices=(
                            Slice(parameter=f"{name}.{FUSED}", role="gate", axis=1, lead=(expert,)),
                            Slice(parameter=f"{name}.{FUSED}", role="up", axis=1, start=units, lead=(expert,)),
                            Slice(parameter=f"{name}.{OUT}", role="out", axis=2, lead=(expert,)),
                        ),
                        config_fields={field: 1} if field else {},
                        width_group=field or name,
                        multiple=GROUPED,
                        taps=TAPS | layer_taps(model, name),
                        surgery=None if field else f"no config field says that the experts of {name} have {units} neurons",
                    )
                )
        if not sites:
            raise UnsupportedArchitecture(
                f"looked for 3-D parameters {FUSED} (E, 2N, H) and {OUT} (E, H, N) in one module, found none"
            )
        return sites

    def tap(
        self, model: nn.Module, sites: Sequence[Site], taps: frozenset[Tap], handler: Handler
    ) -> AbstractContextManager[None]:
        """See `ArchitectureAdapter.tap`."""
        return experts_tapped(model, sites, taps, handler, _forward)


def _forward(module: nn.Module, show: Show) -> Callable[..., Tensor]:
    def forward(hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        fused, out = getattr(module, FUSED), getattr(module, OUT)
        act_fn: Any = module.act_fn
        result = torch.zeros_like(hidden_states)
        for expert in range(fused.shape[0]):
            rows, position = torch.where(top_k_index == expert)
            gate, up = nn.functional.linear(hidden_states[rows], fused[expert]).chunk(2, dim=-1)
            gate, up = show(expert, "gate", gate, rows), show(expert, "up", up, rows)
            neurons = show(expert, "neuron", act_fn(gate) * up, rows)
            update = nn.functional.linear(neurons, out[expert]) * top_k_weights[rows, position, None]
            result.index_add_(0, rows, update.to(result.dtype))
        return result

    return forward
