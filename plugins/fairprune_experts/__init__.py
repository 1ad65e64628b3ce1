"""Experts held as 3-D parameters, one site per expert: Mixtral, Qwen3-MoE, DeepSeek-V3, gpt-oss, Llama 4, Nemotron-H and similar.

`gate_up_proj` and `down_proj` (or `up_proj`, where experts have no gate) hold all experts of a block: as (E, out, in) or transposed,
gate and up as halves or interleaved, with or without biases; the module says which. transformers runs all experts as one grouped
matrix product, so that there is no inner module to hook. While tapped, the experts' forward is replaced by a loop over the experts
that does the same arithmetic and shows each expert's tokens; statistics are therefore over the tokens that were routed to an expert.
Source: `use_experts_implementation` and the `*Experts` classes of transformers 5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fairprune_framework.api import (
    EXPERT_FIELDS,
    ArchitectureAdapter,
    Handler,
    Role,
    Show,
    Site,
    Slice,
    Tap,
    UnsupportedArchitecture,
    decoder_modules,
    experts_tapped,
    layer_taps,
    stored_width,
    text_config,
)

FUSED, UP, OUT = "gate_up_proj", "up_proj", "down_proj"
GROUPED = 8
"""Neurons: rows of a grouped matrix product must be multiples of 16 bytes, and 8 of them are in every dtype."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a module holds its experts."""

    count: int
    units: int
    gated: bool
    transposed: bool
    """(E, in, out) in place of (E, out, in)."""
    interleaved: bool
    """Gate and up alternate, in place of two halves."""
    biased: bool
    repeated: bool
    """Llama 4: the module gets every token once for each expert, times the router's score, and no indices."""


def layout_of(module: nn.Module) -> Layout | None:
    """How a module holds experts; None: it holds none, or in another form."""
    gated = isinstance(getattr(module, FUSED, None), nn.Parameter)
    first, out = getattr(module, FUSED if gated else UP, None), getattr(module, OUT, None)
    if not (isinstance(first, nn.Parameter) and isinstance(out, nn.Parameter) and first.ndim == out.ndim == 3):
        return None
    if isinstance(getattr(module, "gate_proj", None), nn.Parameter) or getattr(module, "has_post_expert_norm", False):
        return None
    declared: Any = module
    transposed = bool(getattr(declared, "is_transposed", first.shape[2] == (2 if gated else 1) * out.shape[1]))
    count, (hidden, units) = out.shape[0], (out.shape[2], out.shape[1]) if transposed else (out.shape[1], out.shape[2])
    wide = units * (2 if gated else 1)
    if tuple(first.shape) != ((count, hidden, wide) if transposed else (count, wide, hidden)):
        return None
    return Layout(
        count=count,
        units=units,
        gated=gated,
        transposed=transposed,
        interleaved=not getattr(declared, "is_concatenated", True),
        biased=bool(getattr(declared, "has_bias", False)),
        repeated=not hasattr(declared, "is_transposed") and transposed,
    )


@dataclass(frozen=True, kw_only=True)
class Experts(ArchitectureAdapter):
    """One site per expert."""

    def sites(self, model: nn.Module) -> Sequence[Site]:
        """See `ArchitectureAdapter.sites`."""
        sites: list[Site] = []
        config = text_config(model)
        for name, module, layer in decoder_modules(model):
            layout = layout_of(module)
            if layout is None:
                continue
            field = stored_width(config, layout.units, layer, EXPERT_FIELDS).field
            taps: set[Tap] = {"mlp_input", "mlp", "up", "neuron", *layer_taps(model, name)}
            if layout.gated:
                taps.add("gate")
            for expert in range(layout.count):
                sites.append(
                    Site(
                        name=f"{name}.{expert}",
                        kind="expert",
                        layer=layer,
                        units=layout.units,
                        slices=tuple(_slices(name, layout, expert)),
                        config_fields={field: 1} if field else {},
                        width_group=field or name,
                        multiple=GROUPED,
                        taps=frozenset(taps),
                    )
                )
        if not sites:
            raise UnsupportedArchitecture(f"looked for 3-D parameters {FUSED} or {UP}, and {OUT}, in one module, found none")
        return sites

    def tap(
        self, model: nn.Module, sites: Sequence[Site], taps: frozenset[Tap], handler: Handler
    ) -> AbstractContextManager[None]:
        """See `ArchitectureAdapter.tap`."""
        return experts_tapped(model, sites, taps, handler, _forward)


def _slices(name: str, layout: Layout, expert: int) -> Iterator[Slice]:
    """Where the neurons of an expert stand: axis 1 of (E, out, in), axis 2 of (E, in, out); axis 1 of the biases (E, out)."""
    axis, first = (2 if layout.transposed else 1), FUSED if layout.gated else UP
    step = 2 if layout.interleaved else 1
    parts: list[tuple[Role, Role, int]] = [("up", "up_bias", 0)]
    if layout.gated:
        parts = [("gate", "gate_bias", 0), ("up", "up_bias", 1 if layout.interleaved else layout.units)]
    for role, bias, start in parts:
        yield Slice(parameter=f"{name}.{first}", role=role, axis=axis, start=start, step=step, lead=(expert,))
        if layout.biased:
            yield Slice(parameter=f"{name}.{first}_bias", role=bias, axis=1, start=start, step=step, lead=(expert,))
    yield Slice(parameter=f"{name}.{OUT}", role="out", axis=3 - axis, lead=(expert,))


def _forward(module: nn.Module, show: Show) -> Callable[..., Tensor]:
    layout = layout_of(module)
    assert layout is not None
    held: Any = module

    def project(values: Tensor, name: str, expert: int) -> Tensor:
        weight, bias = getattr(held, name)[expert], getattr(held, f"{name}_bias")[expert] if layout.biased else None
        return nn.functional.linear(values, weight.T if layout.transposed else weight, bias)

    def neurons(values: Tensor, expert: int, rows: Tensor) -> Tensor:
        """(M, H) tokens of an expert -> (M, N) activations, each tap shown."""
        if not layout.gated:
            return show(expert, "neuron", held.act_fn(show(expert, "up", project(values, UP, expert), rows)), rows)
        both = project(values, FUSED, expert)
        gate, up = (both[:, ::2], both[:, 1::2]) if layout.interleaved else both.chunk(2, dim=-1)
        shown_gate, shown_up = show(expert, "gate", gate, rows), show(expert, "up", up, rows)
        if shown_gate is not gate or shown_up is not up:
            pair = shown_gate, shown_up
            both = torch.stack(pair, -1).flatten(-2) if layout.interleaved else torch.cat(pair, -1)
        activate = getattr(held, "_apply_gate", None)
        return show(expert, "neuron", activate(both) if activate else held.act_fn(shown_gate) * shown_up, rows)

    def forward(hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        result = torch.zeros_like(hidden_states)
        for expert in range(layout.count):
            rows, position = torch.where(top_k_index == expert)
            out = project(neurons(hidden_states[rows], expert, rows), OUT, expert)
            result.index_add_(0, rows, (out * top_k_weights[rows, position, None]).to(result.dtype))
        return result

    def forward_repeated(hidden_states: Tensor) -> Tensor:
        by_expert = hidden_states.view(layout.count, -1, hidden_states.shape[-1])
        result = torch.zeros_like(by_expert)
        for expert in range(layout.count):
            rows = by_expert[expert].any(-1).nonzero().squeeze(-1)
            out = project(neurons(by_expert[expert][rows], expert, rows), OUT, expert)
            result[expert] = result[expert].index_add(0, rows, out)
        return result.view_as(hidden_states)

    return forward_repeated if layout.repeated else forward
