"""Experts held as 3-D parameters, `gate_up_proj` (E, 2N, H) and `down_proj` (E, H, N): Mixtral and its like.

transformers runs all experts as one grouped matrix product, so that there is no inner module to hook. While tapped, the
experts' forward is replaced by a loop over the experts that does the same arithmetic and shows each expert's tokens; statistics
are therefore over the tokens that were routed to an expert. Source: `MixtralExperts` of transformers 5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fairprune_framework.api import (
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
    tapped,
)

FUSED, OUT = "gate_up_proj", "down_proj"
EXPERT_TAPS: frozenset[Tap] = frozenset({"gate", "up", "neuron"})
TAPS: frozenset[Tap] = EXPERT_TAPS | {"mlp_input", "mlp"}


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
        config = getattr(model, "config", None)
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        found: list[Site] = []
        for name, module in model.named_modules():
            layer = layer_index(name)
            if layer is None or not is_experts(module):
                continue
            count, _, units = getattr(module, OUT).shape
            field = next((f for f in ("moe_intermediate_size", "intermediate_size") if getattr(text, f, None) == units), None)
            for expert in range(count):
                found.append(
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
                        taps=TAPS | layer_taps(model, name),
                        surgery=None if field else f"no config field says that the experts of {name} have {units} neurons",
                    )
                )
        if not found:
            raise UnsupportedArchitecture(
                f"looked for 3-D parameters {FUSED} (E, 2N, H) and {OUT} (E, H, N) in one module, found none"
            )
        return found

    @contextmanager
    def tap(self, model: nn.Module, sites: Sequence[Site], taps: frozenset[Tap], handler: Handler) -> Iterator[None]:
        """See `ArchitectureAdapter.tap`."""
        points: list[TapPoint] = []
        by_module: dict[str, dict[int, Site]] = {}
        seen: set[int] = set()
        for site in sites:
            path, _, expert = site.name.rpartition(".")
            by_module.setdefault(path, {})[int(expert)] = site
            if site.layer not in seen:
                seen.add(site.layer)
                block = path.rpartition(".")[0]
                points.append(TapPoint(site=site, tap="mlp_input", module=block, at="input"))
                points.append(TapPoint(site=site, tap="mlp", module=block, at="output"))
                points += layer_points(model, site)
        with ExitStack() as stack:
            stack.enter_context(tapped(model, points, taps, handler))
            if taps & EXPERT_TAPS:
                for path, experts in by_module.items():
                    module = model.get_submodule(path)
                    if "forward" in vars(module):
                        raise RuntimeError(f"{path} is tapped already")
                    stack.callback(vars(module).pop, "forward", None)
                    vars(module)["forward"] = _forward(module, experts, taps, handler)
            yield


def _forward(module: nn.Module, sites: dict[int, Site], taps: frozenset[Tap], handler: Handler) -> Callable[..., Tensor]:
    def shown(expert: int, tap: Tap, values: Tensor, rows: Tensor) -> Tensor:
        if tap not in taps or expert not in sites:
            return values
        replaced = handler(sites[expert], tap, values, rows)
        return values if replaced is None else replaced

    def forward(hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        fused, out, act_fn = getattr(module, FUSED), getattr(module, OUT), _activation(module)
        result = torch.zeros_like(hidden_states)
        for expert in range(fused.shape[0]):
            rows, position = torch.where(top_k_index == expert)
            gate, up = nn.functional.linear(hidden_states[rows], fused[expert]).chunk(2, dim=-1)
            gate, up = shown(expert, "gate", gate, rows), shown(expert, "up", up, rows)
            neurons = shown(expert, "neuron", act_fn(gate) * up, rows)
            update = nn.functional.linear(neurons, out[expert]) * top_k_weights[rows, position, None]
            result.index_add_(0, rows, update.to(result.dtype))
        return result

    return forward


def _activation(module: nn.Module) -> Callable[[Tensor], Tensor]:
    function: Any = module.act_fn
    return function  # type: ignore[no-any-return]
