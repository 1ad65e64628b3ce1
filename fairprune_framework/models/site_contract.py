"""Whether what an adapter names are sites of a model: asked once, before anyone looks for their tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from torch import nn

from fairprune_framework.api.types import VECTORS, Role, Site, Slice, Tap
from fairprune_framework.errors import ContractViolation, shown

KINDS = ("mlp", "expert", "heads")


def check_sites(model: nn.Module, sites: Any, label: str) -> None:
    """Raise `ContractViolation` unless all are sites, with slices that lie in parameters of the model.

    Args:
        sites: what `ArchitectureAdapter.sites` returned.
        label: of the adapter, in messages.
    """
    if not isinstance(sites, Sequence) or isinstance(sites, str):
        raise ContractViolation(f"{label}: sites() must return a sequence of sites. Got {type(sites).__name__} instead.")
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters(remove_duplicate=False)}
    for site in sites:
        if (why := _misfit(site, shapes)) is not None:
            name = getattr(site, "name", None)
            raise ContractViolation(f"{label}: the site {name if isinstance(name, str) else shown(site)} {why}")


def _misfit(site: object, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    if not isinstance(site, Site):
        return f"is of type {type(site).__name__}, not Site"
    given: Any = site  # nobody checked its types
    if not isinstance(given.name, str) or not isinstance(given.width_group, str):
        return "has a name or a width group that is no text"
    if site.kind not in KINDS:
        return f"is of the kind {shown(site.kind)}; there are {', '.join(KINDS)}"
    counts = {"units": 1, "unit_width": 1, "layer": 0, "multiple": 1}
    for name, least in counts.items():
        value = getattr(site, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            return f"has {shown(value)} as {name}, not a whole number of at least {least}"
    if not isinstance(site.taps, frozenset) or not site.taps <= set(get_args(Tap)) or "neuron" not in site.taps:
        return f"lists the taps {shown(site.taps)}: a frozenset of {', '.join(get_args(Tap))}, with neuron among them"
    for fields in (site.config_fields, site.config_constants):
        if not isinstance(fields, Mapping) or not all(isinstance(value, int) for value in fields.values()):
            return f"has {shown(fields)} as fields of the config, not a mapping to whole numbers"
    if not isinstance(site.slices, tuple) or not site.slices:
        return f"has {shown(site.slices)} as slices, not a tuple of at least one"
    if site.surgery is not None:  # packed weights, which have other shapes
        return None
    return next((why for piece in site.slices if (why := _outside(piece, site, shapes)) is not None), None)


def _outside(piece: Any, site: Site, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    if not isinstance(piece, Slice):
        return f"has {shown(piece)} among its slices"
    if piece.parameter not in shapes:
        return f"has a slice of {shown(piece.parameter)}, which is no parameter of the model"
    shape, lead = shapes[piece.parameter], piece.lead
    numbers = (piece.axis, piece.start, piece.step, piece.width, *(lead if isinstance(lead, tuple) else (None,)))
    if not all(isinstance(number, int) and number >= 0 for number in numbers) or not piece.width or not piece.step:
        return f"has a slice of {piece.parameter} with numbers that are none: {shown(piece)}"
    if piece.role not in get_args(Role):
        return f"has a slice of {piece.parameter} with the role {shown(piece.role)}; there are {', '.join(get_args(Role))}"
    ends = piece.start + (site.units - 1) * piece.step + piece.width
    dimensions = len(shape) - len(lead)
    if any(index >= size for index, size in zip(lead, shape, strict=False)) or not 0 <= piece.axis - len(lead) < dimensions:
        return f"has a slice outside {piece.parameter} {shape}: {shown(piece)}"
    if ends > shape[piece.axis]:
        return f"reaches to {ends} of the {shape[piece.axis]} on axis {piece.axis} of {piece.parameter}"
    if dimensions != (1 if piece.role in VECTORS else 2):
        return f"has {dimensions} dimensions of {piece.parameter} as {piece.role}"
    return None
