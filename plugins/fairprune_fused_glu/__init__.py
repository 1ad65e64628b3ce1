"""Gated MLPs whose gate and up projections are the halves of one Linear: Phi-3, GLM, GLM-4.

`gate_up_proj` is (2N, H): rows 0..N-1 are the gate, N..2N-1 the up projection. Source: `Phi3MLP` of transformers 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import nn

from fairprune_framework.api import (
    GLU_TAPS,
    ArchitectureAdapter,
    Handler,
    Site,
    Slice,
    Tap,
    TapPoint,
    UnsupportedArchitecture,
    layer_index,
    layer_points,
    layer_taps,
    surgery_obstacle,
    tapped,
)

FUSED, OUT = "gate_up_proj", "down_proj"


@dataclass(frozen=True, kw_only=True)
class FusedGlu(ArchitectureAdapter):
    """One site per MLP with a fused gate-and-up Linear."""

    def sites(self, model: nn.Module) -> Sequence[Site]:
        """See `ArchitectureAdapter.sites`."""
        sites: list[Site] = []
        for name, module in model.named_modules():
            fused, out, layer = getattr(module, FUSED, None), getattr(module, OUT, None), layer_index(name)
            if not (isinstance(fused, nn.Linear) and isinstance(out, nn.Linear)) or layer is None:
                continue
            units = out.in_features
            if fused.out_features != 2 * units:
                continue
            slices = [
                Slice(parameter=f"{name}.{FUSED}.weight", role="gate", axis=0),
                Slice(parameter=f"{name}.{FUSED}.weight", role="up", axis=0, start=units),
                Slice(parameter=f"{name}.{OUT}.weight", role="out", axis=1),
            ]
            if fused.bias is not None:
                slices.append(Slice(parameter=f"{name}.{FUSED}.bias", role="gate_bias", axis=0))
                slices.append(Slice(parameter=f"{name}.{FUSED}.bias", role="up_bias", axis=0, start=units))
            sites.append(
                Site(
                    name=name,
                    layer=layer,
                    units=units,
                    slices=tuple(slices),
                    config_fields={"intermediate_size": 1},
                    width_group="intermediate_size",
                    taps=GLU_TAPS | layer_taps(model, name),
                    surgery=surgery_obstacle(model, name, OUT, units),
                )
            )
        if not sites:
            raise UnsupportedArchitecture(f"looked for Linears {FUSED} (2N, H) and {OUT} (H, N) in one module, found none")
        return sites

    def tap(
        self, model: nn.Module, sites: Sequence[Site], taps: frozenset[Tap], handler: Handler
    ) -> AbstractContextManager[None]:
        """See `ArchitectureAdapter.tap`."""
        points = layer_points(model, sites)
        for site in sites:
            out = model.get_submodule(f"{site.name}.{OUT}")
            assert isinstance(out, nn.Linear)
            width, fused = out.in_features, f"{site.name}.{FUSED}"
            points += [
                TapPoint(site=site, tap="mlp_input", module=site.name, at="input"),
                TapPoint(site=site, tap="mlp", module=site.name, at="output"),
                TapPoint(site=site, tap="gate", module=fused, at="output", start=0, stop=width),
                TapPoint(site=site, tap="up", module=fused, at="output", start=width, stop=2 * width),
                TapPoint(site=site, tap="neuron", module=f"{site.name}.{OUT}", at="input"),
                TapPoint(site=site, tap="down", module=f"{site.name}.{OUT}", at="output"),
            ]
        return tapped(model, points, taps, handler)
