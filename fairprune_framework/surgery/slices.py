"""Every operation on the units of a site, written once for all architectures: view, zero, cut, put back.

A `Slice` says where units live in one parameter. Pure functions over tensors, plus `swap`, which replaces a parameter in place of
another and can be undone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fairprune_framework.api.types import Site, Slice
from fairprune_framework.errors import FairpruneError


def positions(piece: Slice, units: Tensor) -> Tensor:
    """Indices on the slice's axis that belong to units (n,) -> (n * width,)."""
    first = piece.start + units * piece.step
    return (first.unsqueeze(-1) + torch.arange(piece.width, device=units.device)).reshape(-1)


def part(parameter: Tensor, piece: Slice) -> tuple[Tensor, int]:
    """The parameter after `lead`, a view, and the axis counted in it."""
    return parameter[piece.lead] if piece.lead else parameter, piece.axis - len(piece.lead)


def view(parameter: Tensor, piece: Slice, units: int) -> Tensor:
    """The weights of all units, unit first: (units * width, rest) or (units * width,). A copy."""
    tensor, axis = part(parameter, piece)
    index = positions(piece, torch.arange(units, device=tensor.device))
    return tensor.index_select(axis, index).movedim(axis, 0)


def weights_of(model: nn.Module, site: Site) -> dict[str, Tensor]:
    """role -> (N * width, H) or (N * width,) float32 on the CPU, unfused. `out` too comes unit first."""
    found: dict[str, Tensor] = {}
    for piece in site.slices:
        parameter, units = _own(model.get_parameter(piece.parameter).detach(), piece, site)
        found[piece.role] = view(parameter, piece, units).to(device="cpu", dtype=torch.float32)
    return found


def _own(parameter: Tensor, piece: Slice, site: Site) -> tuple[Tensor, int]:
    """A parameter and how many units of the site it holds: all, or under tensor parallel those of this rank.

    Raises:
        FairpruneError: it is spread over devices in another way; a shard is never read as if it were the whole.
    """
    if not hasattr(parameter, "to_local"):
        return parameter, site.units
    local: Tensor = parameter.to_local()
    if site.local is not None and not piece.lead and piece.start == 0:
        units = site.local.stop - site.local.start
        if local.shape[piece.axis] == units * piece.width:
            return local, units
    raise FairpruneError(
        f"{piece.parameter} is spread over devices, {tuple(local.shape)} of {tuple(parameter.shape)} here: load the model whole to "
        "read its weights"
    )


def unit_parameters(model: nn.Module, site: Site) -> int:
    """Parameters of one unit of a site."""
    total = 0
    for piece in site.slices:
        tensor, axis = part(model.get_parameter(piece.parameter), piece)
        total += tensor.numel() // tensor.shape[axis] * piece.width
    return total


def zero_(parameters: Mapping[str, Tensor], site: Site, units: Tensor, roles: frozenset[str] | None = None) -> None:
    """Set the slices of units to zero, in place."""
    for piece in site.slices:
        if roles is None or piece.role in roles:
            tensor, axis = part(parameters[piece.parameter], piece)
            tensor.index_fill_(axis, positions(piece, units.to(tensor.device)), 0)


def scale_(parameters: Mapping[str, Tensor], site: Site, units: Tensor, factor: float) -> None:
    """Multiply what units write, their output weights, by a factor, in place: the same as multiplying their activations."""
    for piece in site.slices:
        if piece.role == "out":
            tensor, axis = part(parameters[piece.parameter], piece)
            index = positions(piece, units.to(tensor.device))
            tensor.index_copy_(axis, index, tensor.index_select(axis, index) * factor)


def kept_positions(length: int, pieces: Sequence[tuple[Slice, Tensor]]) -> Tensor:
    """Indices that stay on an axis of `length` after the units of each slice have gone, in order."""
    keep = torch.ones(length, dtype=torch.bool)
    for piece, units in pieces:
        keep[positions(piece, units)] = False
    return keep.nonzero().squeeze(-1)


def cut(parameter: Tensor, pieces: Sequence[tuple[Slice, Tensor]]) -> Tensor:
    """A new tensor without the units of each slice. Slices with different `lead` must lose equally many.

    Args:
        pieces: (slice, units to go) for every slice that lives in this parameter.
    """
    axes = {piece.axis for piece, _ in pieces}
    assert len(axes) == 1, "all slices of a parameter lie on one axis"
    axis = axes.pop()
    leads: dict[tuple[int, ...], list[tuple[Slice, Tensor]]] = {}
    for piece, units in pieces:
        leads.setdefault(piece.lead, []).append((piece, units))
    if list(leads) == [()]:
        return parameter.index_select(axis, kept_positions(parameter.shape[axis], leads[()]).to(parameter.device)).contiguous()
    assert all(len(lead) == 1 for lead in leads), "slices lead by one index, the expert"
    rows = []
    for expert in range(parameter.shape[0]):
        keep = kept_positions(parameter.shape[axis], leads.get((expert,), [])).to(parameter.device)
        rows.append(parameter[expert].index_select(axis - 1, keep))
    return torch.stack(rows).contiguous()


def set_parameter(model: nn.Module, name: str, value: Tensor) -> nn.Parameter:
    """Put a new tensor in the place of a parameter, keep the widths that Linears remember true, and return the old one."""
    path, _, attribute = name.rpartition(".")
    module = model.get_submodule(path)
    old: nn.Parameter = getattr(module, attribute)
    new = value if isinstance(value, nn.Parameter) else nn.Parameter(value, requires_grad=old.requires_grad)
    setattr(module, attribute, new)
    if isinstance(module, nn.Linear) and attribute == "weight":
        module.out_features, module.in_features = new.shape
    return old
