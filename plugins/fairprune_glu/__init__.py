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
    Tap,
    UnsupportedArchitecture,
    layer_index,
    layer_path,
    layer_points,
    linear_trio,
    tapped,
    trio_points,
    trio_site,
)


@dataclass(frozen=True, kw_only=True)
class Glu(ArchitectureAdapter):
    """One site per gated MLP of three Linears."""

    def sites(self, model: nn.Module) -> Sequence[Site]:
        """See `ArchitectureAdapter.sites`."""
        sites: list[Site] = []
        for name, module in model.named_modules():
            trio, layer = linear_trio(module), layer_index(name)
            if trio is None or layer is None:
                continue
            if layer_index(name.removeprefix(layer_path(name)).lstrip(".")) is not None:
                raise UnsupportedArchitecture(
                    f"{name} is one of several experts: their tokens are routed, which 'glu' does not follow"
                )
            sites.append(trio_site(model, name, trio, layer))
        if not sites:
            first = next(
                (name for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module)), None
            )
            block = f"{first}.0" if first else "the model"
            children = [child for child, _ in (model.get_submodule(block) if first else model).named_children()]
            raise UnsupportedArchitecture(
                f"looked for gate/up/down Linears under {block}, found {', '.join(children) or 'nothing'}"
            )
        return sites

    def tap(
        self, model: nn.Module, sites: Sequence[Site], taps: frozenset[Tap], handler: Handler
    ) -> AbstractContextManager[None]:
        """See `ArchitectureAdapter.tap`."""
        points = layer_points(model, sites)
        for site in sites:
            trio = linear_trio(model.get_submodule(site.name))
            assert trio is not None
            points += trio_points(site, trio)
        return tapped(model, points, taps, handler)
