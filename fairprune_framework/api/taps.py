"""Hooks for adapters whose activations pass through ordinary modules: where to listen, and attaching without a trace.

An adapter for such a layout lists `TapPoint`s and hands them to `tapped`. Layouts without inner modules (experts held as one
3-D parameter) bring a context manager of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from fairprune_framework.api.interfaces import Handler
from fairprune_framework.api.types import Site, Tap

_LAYER = re.compile(r"^(?:.*?\.)?(\d{1,18})(?=\.|$)")
_INNER: Mapping[Tap, tuple[str, ...]] = {
    "attention": ("self_attn", "self_attention", "attention", "attn", "temporal_block"),
    "norm": ("input_layernorm", "ln_1", "norm1", "attention_norm", "operator_norm"),
}
"""Tap of a decoder layer -> names that its module goes by."""
_STREAMS = ("altup_num_inputs", "hc_mult", "hc_count")
"""Config fields with the number of vectors that stand for one token between the layers."""


@dataclass(frozen=True, kw_only=True)
class TapPoint:
    """Where to listen: the input or output of a module, or the columns `[start:stop]` of it."""

    site: Site
    tap: Tap
    module: str
    at: Literal["input", "output"]
    start: int = 0
    stop: int | None = None


def layer_index(name: str) -> int | None:
    """Number of the decoder layer in a module path.

    >>> layer_index("model.layers.7.mlp.experts.3")
    7
    """
    match = _LAYER.match(name)
    return int(match[1]) if match else None


def layer_path(name: str) -> str:
    """Path of the decoder layer that a module belongs to.

    >>> layer_path("model.layers.7.mlp.experts.3")
    'model.layers.7'
    """
    match = _LAYER.match(name)
    return match[0] if match else ""


def layer_points(model: nn.Module, sites: Iterable[Site]) -> list[TapPoint]:
    """The taps of decoder layers (`layer_input`, `layer`, `attention`, `norm`), given once, with each layer's first site."""
    firsts: dict[int, Site] = {}
    for site in sites:
        firsts.setdefault(site.layer, site)
    points: list[TapPoint] = []
    for first in firsts.values():
        path = layer_path(first.name)
        children = dict(model.get_submodule(path).named_children())
        points.append(TapPoint(site=first, tap="layer_input", module=path, at="input"))
        points.append(TapPoint(site=first, tap="layer", module=path, at="output"))
        for tap, names in _INNER.items():
            inner = next((name for name in names if name in children), None)
            if inner is not None:
                points.append(TapPoint(site=first, tap=tap, module=f"{path}.{inner}", at="output"))
    return points


def layer_taps(model: nn.Module, name: str) -> frozenset[Tap]:
    """Which of the taps of `layer_points` the decoder layer of a module has; OLMo-2, say, has no norm before its attention.

    None where the layers of a model pass several vectors per token on.
    """
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    if any((getattr(config, field, None) or 1) > 1 for field in _STREAMS):
        return frozenset()
    children = {child for child, _ in model.get_submodule(layer_path(name)).named_children()}
    always: tuple[Tap, ...] = ("layer_input", "layer")
    return frozenset((*always, *(tap for tap, names in _INNER.items() if children & set(names))))


@contextmanager
def tapped(model: nn.Module, points: Iterable[TapPoint], taps: frozenset[Tap], handler: Handler) -> Iterator[None]:
    """Attach the points whose tap is asked for; every hook is removed on every path out."""
    with ExitStack() as stack:
        for point in points:
            if point.tap not in taps:
                continue
            module = model.get_submodule(point.module)
            if point.at == "input":
                handle = module.register_forward_pre_hook(_input_hook(point, handler), with_kwargs=True)
            else:
                handle = module.register_forward_hook(_output_hook(point, handler))
            stack.callback(handle.remove)
        yield


def _handle(point: TapPoint, handler: Handler, value: Any) -> Any:
    if hasattr(value, "to_local"):  # tensor parallel: this rank's columns, or all of them where every rank has them
        local = _handle(point, handler, value.to_local())
        return None if local is None else value.from_local(local, value.device_mesh, value.placements)
    part = value if point.stop is None else value[..., point.start : point.stop]
    replaced = handler(point.site, point.tap, part.reshape(-1, part.shape[-1]), None)
    if replaced is None:
        return None
    replaced = replaced.reshape(part.shape)
    if point.stop is None:
        return replaced
    whole = value.clone()
    whole[..., point.start : point.stop] = replaced
    return whole


def _input_hook(point: TapPoint, handler: Handler) -> Any:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        key = None if args else ("hidden_states" if "hidden_states" in kwargs else next(iter(kwargs)))
        replaced = _handle(point, handler, args[0] if key is None else kwargs[key])
        if replaced is None:
            return None
        return ((replaced, *args[1:]), kwargs) if key is None else (args, {**kwargs, key: replaced})

    return hook


def _output_hook(point: TapPoint, handler: Handler) -> Any:
    def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        replaced = _handle(point, handler, output[0] if isinstance(output, tuple) else output)
        if replaced is None:
            return None
        return (replaced, *output[1:]) if isinstance(output, tuple) else replaced

    return hook
