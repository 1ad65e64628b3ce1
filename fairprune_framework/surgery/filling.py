"""Uneven layers made as wide as the config says, with zeros: the model answers alike, and every reader of its family takes it."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch

from fairprune_framework.api.types import Site, Slice
from fairprune_framework.errors import UserError
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.uneven import FIELD, forget
from fairprune_framework.surgery.slices import part, positions, set_parameter

Pair = tuple[Site, Site, Slice, Slice]
"""A site as it is and filled up, and where its units are in a parameter of the one and of the other."""


def why_unfilled(model: Any) -> str | None:
    """Why `fill_in_place` cannot fill up a model; None: it can, or has nothing to do. No value is read: the model may be on `meta`."""
    try:
        _places(model)
    except UserError as error:
        return str(error)
    return None


@torch.no_grad()
def fill_in_place(model: Any) -> list[str]:
    """Give every uneven parameter of a model the shape that the other fields of its config say; new units are zeros, behind the others.

    Weights of a norm over the units shrink by sqrt(kept / N): its mean is over more of them.

    Returns: the names of the parameters.

    Raises:
        UserError: what `why_unfilled` says.
    """
    places = _places(model)
    for name, (shape, pairs) in places.items():
        old = model.get_parameter(name).detach()
        new = torch.zeros(shape, dtype=old.dtype, device=old.device)
        for site, wide, here, there in pairs:
            source, axis = part(old, here)
            target, _ = part(new, there)
            units = torch.arange(site.units)
            values = source.index_select(axis, positions(here, units).to(old.device))
            if here.role == "inner_norm":
                values = (values.double() * math.sqrt(site.units / wide.units)).to(old.dtype)
            target.index_copy_(axis, positions(there, units).to(old.device), values)
        set_parameter(model, name, new)
    forget(model, places)
    return list(places)


def _places(model: Any) -> dict[str, tuple[torch.Size, list[Pair]]]:
    """Uneven parameter -> the shape that the config says, and how its units get there.

    Raises:
        UserError: one holds no units of a site, or is one that the family lacks.
    """
    names = sorted(getattr(model.config, FIELD, None) or {})
    if not names:
        return {}
    config = copy.deepcopy(model.config)
    delattr(config, FIELD)
    with torch.device("meta"):
        plain = type(model)(config)
    shapes = {name: value.shape for name, value in plain.named_parameters()}
    if lacking := sorted(set(names) - shapes.keys()):
        raise UserError(
            f"{lacking[0]} is a bias that no field of the config gives {type(model).__name__}: --format vllm keeps it"
        )
    narrow, wide = recognise(model).sites, recognise(plain).sites
    pairs: dict[str, list[Pair]] = {name: [] for name in names}
    for site in narrow.values():
        for here, there in zip(site.slices, wide[site.name].slices, strict=True):
            if here.parameter in pairs:
                pairs[here.parameter].append((site, wide[site.name], here, there))
    if empty := [name for name in names if not pairs[name]]:
        raise UserError(f"{empty[0]} is narrower than the config says, and holds no neurons: it cannot be filled up")
    return {name: (shapes[name], pairs[name]) for name in names}
