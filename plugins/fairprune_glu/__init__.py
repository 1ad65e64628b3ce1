"""Gated MLPs made of three plain Linears: Llama, Mistral, Qwen2/3, Gemma 1-3 and every other model of that shape.

Found by shape: a module with two Linears H -> N and one N -> H; which of the two is the gate is told by its name, and the core
confirms each site causally. Source: the `*MLP` classes of transformers 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import nn

from fairprune_framework.api import (
    ArchitectureAdapter,
    Handler,
    Site,
    Slice,
    Tap,
    TapPoint,
    UnsupportedArchitecture,
    layer_index,
    layer_path,
    layer_points,
    layer_taps,
    tapped,
)

GATES = ("gate_proj", "w1", "gate", "wi_0")
UPS = ("up_proj", "w3", "up", "wi_1")
OUTS = ("down_proj", "w2", "down", "wo", "out_proj")
TAPS: frozenset[Tap] = frozenset({"mlp_input", "mlp", "gate", "up", "neuron", "down"})


def trio(module: nn.Module) -> tuple[str, str, str] | None:
    """Names of the gate, up and output Linears among the children of a module, or None where it is no gated MLP."""
    linears = {name: child for name, child in module.named_children() if isinstance(child, nn.Linear)}
    gates, ups, outs = ([name for name in linears if name in names] for names in (GATES, UPS, OUTS))
    if not (len(gates) == len(ups) == len(outs) == 1):
        return None
    gate, up, out = (linears[names[0]] for names in (gates, ups, outs))
    fits = (gate.in_features, gate.out_features) == (up.in_features, up.out_features) == (out.out_features, out.in_features)
    return (gates[0], ups[0], outs[0]) if fits else None


@dataclass(frozen=True, kw_only=True)
class Glu(ArchitectureAdapter):
    """One site per gated MLP of three Linears."""

    def sites(self, model: nn.Module) -> Sequence[Site]:
        """See `ArchitectureAdapter.sites`."""
        found: list[Site] = []
        for name, module in model.named_modules():
            names, layer = trio(module), layer_index(name)
            if names is None or layer is None:
                continue
            if layer_index(name.removeprefix(layer_path(name)).lstrip(".")) is not None:
                raise UnsupportedArchitecture(
                    f"{name} is one of several experts: their tokens are routed, which 'glu' does not follow"
                )
            found.append(self._site(model, name, module, names, layer))
        if not found:
            first = next(
                (name for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module)), None
            )
            block = f"{first}.0" if first else "the model"
            children = [child for child, _ in (model.get_submodule(block) if first else model).named_children()]
            raise UnsupportedArchitecture(
                f"looked for gate/up/down Linears under {block}, found {', '.join(children) or 'nothing'}"
            )
        return found

    def _site(self, model: nn.Module, name: str, module: nn.Module, names: tuple[str, str, str], layer: int) -> Site:
        gate, up, out = names
        linear = module.get_submodule(gate)
        assert isinstance(linear, nn.Linear)
        units = linear.out_features
        slices = [
            Slice(parameter=f"{name}.{gate}.weight", role="gate", axis=0),
            Slice(parameter=f"{name}.{up}.weight", role="up", axis=0),
            Slice(parameter=f"{name}.{out}.weight", role="out", axis=1),
        ]
        for child, role in ((gate, "gate_bias"), (up, "up_bias")):
            if module.get_submodule(child).bias is not None:
                slices.append(Slice(parameter=f"{name}.{child}.bias", role=role, axis=0))  # type: ignore[arg-type]
        surgery = None
        if tuple(linear.weight.shape) != (units, linear.in_features):
            surgery = f"{name}.{gate} holds packed weights ({type(linear).__name__}): load the model in bfloat16"
        config = getattr(model, "config", None)
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        width = getattr(text, "intermediate_size", None)
        if surgery is None and width != units:
            surgery = f"the config says intermediate_size={width}, but {name} has {units} neurons"
        return Site(
            name=name,
            layer=layer,
            units=units,
            slices=tuple(slices),
            config_fields={"intermediate_size": 1},
            width_group="intermediate_size",
            taps=TAPS | layer_taps(model, name),
            surgery=surgery,
        )

    def tap(
        self, model: nn.Module, sites: Sequence[Site], taps: frozenset[Tap], handler: Handler
    ) -> AbstractContextManager[None]:
        """See `ArchitectureAdapter.tap`."""
        points: list[TapPoint] = []
        seen: set[int] = set()
        for site in sites:
            names = trio(model.get_submodule(site.name))
            assert names is not None
            gate, up, out = names
            points += [
                TapPoint(site=site, tap="mlp_input", module=site.name, at="input"),
                TapPoint(site=site, tap="mlp", module=site.name, at="output"),
                TapPoint(site=site, tap="gate", module=f"{site.name}.{gate}", at="output"),
                TapPoint(site=site, tap="up", module=f"{site.name}.{up}", at="output"),
                TapPoint(site=site, tap="neuron", module=f"{site.name}.{out}", at="input"),
                TapPoint(site=site, tap="down", module=f"{site.name}.{out}", at="output"),
            ]
            if site.layer not in seen:
                seen.add(site.layer)
                points += layer_points(model, site)
        return tapped(model, points, taps, handler)
