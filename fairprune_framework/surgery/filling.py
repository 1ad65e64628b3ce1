"""Uneven layers made as wide as the config says, with zeros: the model answers alike, and every reader of its family takes it."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch

from fairprune_framework.errors import UserError
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.uneven import FIELD, forget
from fairprune_framework.surgery.slices import part, positions, set_parameter


@torch.no_grad()
def fill_in_place(model: Any) -> list[str]:
    """Give every uneven parameter of a model the shape that the other fields of its config say; new units are zeros, behind the others.

    Weights of a norm over the units shrink by sqrt(kept / N): its mean is over more of them.

    Returns: the names of the parameters.

    Raises:
        UserError: an uneven parameter holds no units of a site, or is one that the family lacks.
    """
    names = sorted(getattr(model.config, FIELD, None) or {})
    if not names:
        return []
    config = copy.deepcopy(model.config)
    delattr(config, FIELD)
    with torch.device("meta"):
        plain = type(model)(config)
    if lacking := sorted(set(names) - dict(plain.named_parameters()).keys()):
        raise UserError(
            f"{lacking[0]} is a bias that no field of the config gives {type(model).__name__}: --format vllm keeps it"
        )
    narrow, wide = recognise(model).sites, recognise(plain).sites
    for name in names:
        old = model.get_parameter(name).detach()
        new = torch.zeros(plain.get_parameter(name).shape, dtype=old.dtype, device=old.device)
        pairs = [
            (site, here, there)
            for site in narrow.values()
            for here, there in zip(site.slices, wide[site.name].slices, strict=True)
            if here.parameter == name
        ]
        if not pairs:
            raise UserError(f"{name} is narrower than the config says, and holds no neurons: it cannot be filled up")
        for site, here, there in pairs:
            source, axis = part(old, here)
            target, _ = part(new, there)
            units = torch.arange(site.units)
            values = source.index_select(axis, positions(here, units).to(old.device))
            if here.role == "inner_norm":
                values = (values.double() * math.sqrt(site.units / wide[site.name].units)).to(old.dtype)
            target.index_copy_(axis, positions(there, units).to(old.device), values)
        set_parameter(model, name, new)
    forget(model, names)
    return names
