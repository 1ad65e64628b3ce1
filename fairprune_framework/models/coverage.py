"""Whether sites name every MLP neuron of a model's text decoder: what no site covers is found by name and by shape."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from fairprune_framework.api.decoders import below, decoder_path, other_modalities, text_config
from fairprune_framework.api.taps import layer_path
from fairprune_framework.api.types import Site
from fairprune_framework.errors import ContractViolation

_MLP = re.compile(r"(^|_)(mlp|ffn?|feed_?forward|experts?|moe|fc\d*)(_|\d*$)")
"""Names of modules that hold an MLP, or a part of one."""
_BESIDE = re.compile(r"attn|attention|mamba|mlstm|hyper|(^|_)(conv|hc)(_|$|\d)")
"""Names of modules that hold none, wherever they stand."""
_ROUTER = re.compile(r"(^|_)(router|gate|wg)(_|$)")
"""Names of modules that choose experts. Beside experts alone: elsewhere a `gate` is half of an MLP."""


def coverage_gap(model: nn.Module, sites: Sequence[Site]) -> str | None:
    """The first parameter of the text decoder that should be covered and is not, as the end of a sentence; None if all are.

    An MLP is any block (child of a decoder layer) of a kind with a site in some layer, and any module named like one. A matrix there
    outside all sites may only be a router, or a single one from the hidden dimensions to themselves, and the length of a vector must
    be that of the hidden dimensions or differ from the width of a site; a parameter of a site must be covered whole, and belong to it
    alone. Towers for images or sound are no part of the decoder. Sites of heads cover the attention blocks of their kind in all layers;
    sites of heads alone leave the MLPs out.

    Raises:
        ContractViolation: two sites have the same name.
    """
    if len({site.name for site in sites}) < len(sites):
        raise ContractViolation("two sites have the same name")
    stacks = sorted({layer_path(site.name).rpartition(".")[0] for site in sites})
    if len(stacks) > 1:
        return f"its sites lie in several stacks of layers, {' and '.join(stacks)}, whose numbers do not tell the layers apart"
    if (partly := _covered_in_part(model, sites)) is not None:
        return partly
    if (twice := _shared_by_sites(model, sites)) is not None:
        return twice
    if (without := _without_heads(model, [site for site in sites if site.kind == "heads"])) is not None:
        return without
    sites = [site for site in sites if site.kind != "heads"]
    if not sites:
        return None
    covered = {piece.parameter: piece.role for site in sites for piece in site.slices}
    kinds = {_kind(model, _block(name)) for name in covered}
    experts, widths = _experts_and_widths(sites)
    hidden = getattr(text_config(model), "hidden_size", None)
    square: dict[str, list[str]] = {}
    for name, shape in _parameters(model):
        block = _block(name)
        rest = name.removeprefix(layer_path(name)).strip(".").split(".")
        if name in covered or not block or rest[0].endswith("norm") or any(_BESIDE.search(part) for part in rest[:-1]):
            continue
        if _kind(model, block) not in kinds and not any(_MLP.search(part) for part in rest[:-1]):
            continue
        count = experts.get(block, 0)
        routes = len(shape) == 2 and (shape[0] in (1, count) or (count > 0 and any(_ROUTER.search(part) for part in rest)))
        inert = len(shape) < 2 and (shape == (hidden,) or shape[-1:] not in {(width,) for width in widths.get(block, ())})
        if routes or inert or math.prod(shape) == shape[-1] == hidden or _output_bias(name, covered):
            continue
        square.setdefault(block, []).append(name)
        if shape != (hidden, hidden) or len(square[block]) > 1:
            return f"no site covers {name} {shape}"
    return None


def _shared_by_sites(model: nn.Module, sites: Sequence[Site]) -> str | None:
    """Two sites with the same weights, such as one MLP that several layers run: what is cut of one would be cut of the other."""
    owner: dict[int, str] = {}
    for site in sites:
        for piece in site.slices:
            key = id(model.get_parameter(piece.parameter))
            if owner.setdefault(key, piece.parameter) != piece.parameter:
                return f"{owner[key]} and {piece.parameter} are one tensor: several layers share an MLP"
    return None


def _without_heads(model: nn.Module, sites: Sequence[Site]) -> str | None:
    """An attention block of a kind with a site, in a layer without one."""
    blocks = {_block(piece.parameter) for site in sites for piece in site.slices}
    kinds = {_kind(model, block) for block in blocks}
    for name, _ in _parameters(model) if sites else ():
        block = _block(name)
        if block and block not in blocks and _kind(model, block) in kinds:
            return f"no site covers {name}"
    return None


def _kind(model: nn.Module, block: str) -> tuple[str, str]:
    """Name and class of a child of a decoder layer: in hybrids, children of one name are of several classes."""
    layer, _, child = block.rpartition(".")
    return child, type(getattr(model.get_submodule(layer), child, None)).__name__


def _parameters(model: nn.Module) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of the parameters of the text decoder."""
    path, others = decoder_path(model), other_modalities(model)
    for name, parameter in model.named_parameters():
        if below(name, path) and not any(below(name, other) for other in others):
            yield name, tuple(parameter.shape)


def _covered_in_part(model: nn.Module, sites: Sequence[Site]) -> str | None:
    """A parameter of which the slices cover a part only, such as some of the experts that it holds."""
    counts: dict[str, int] = {}
    for site in sites:
        for piece in site.slices:
            shape = model.get_parameter(piece.parameter).shape[len(piece.lead) :]
            size = shape[piece.axis - len(piece.lead)]
            counts[piece.parameter] = counts.get(piece.parameter, 0) + shape.numel() // size * site.units * piece.width
    for name, count in counts.items():
        size = model.get_parameter(name).numel()
        if count != size:
            return f"the sites cover {count} of {size} weights of {name}"
    return None


def _experts_and_widths(sites: Sequence[Site]) -> tuple[Mapping[str, int], Mapping[str, set[int]]]:
    """Block -> how many experts it holds; block -> the widths of its sites."""
    experts: dict[str, int] = {}
    widths: dict[str, set[int]] = {}
    for site in sites:
        for block in {_block(piece.parameter) for piece in site.slices}:
            widths.setdefault(block, set()).add(site.units * site.unit_width)
            experts[block] = experts.get(block, 0) + (site.kind == "expert")
    return experts, widths


def _block(name: str) -> str:
    """The child of a decoder layer that a parameter belongs to; empty outside the layers."""
    layer = layer_path(name)
    rest = name.removeprefix(layer).strip(".").split(".")
    return f"{layer}.{rest[0]}" if layer and rest[0] else ""


def _output_bias(name: str, covered: Mapping[str, str]) -> bool:
    """The bias of an output projection: one number for each hidden dimension, none for a neuron."""
    owner = f"{name.removesuffix('bias')}weight" if name.endswith(".bias") else name.removesuffix("_bias")
    return owner != name and covered.get(owner) == "out"
