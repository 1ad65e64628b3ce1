"""The operations on the units of a site, for all architectures: view, zero, scale, prune.

A `Slice` locates units in one parameter. The functions are pure, except for `set_parameter`, which replaces one parameter of a model
and returns the old one, so that it can be restored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fairprune_framework.api.types import Site, Slice
from fairprune_framework.errors import FairpruneError
from fairprune_framework.models.uneven import put


def positions(slice_: Slice, units: Tensor) -> Tensor:
    """Indices of units on the axis of the slice: (n,) -> (n * width,)."""
    first = slice_.start + units * slice_.step
    return (first.unsqueeze(-1) + torch.arange(slice_.width, device=units.device)).reshape(-1)


def part(parameter: Tensor, slice_: Slice) -> tuple[Tensor, int]:
    """A view of the parameter at `lead`, and the axis in this view."""
    return parameter[slice_.lead] if slice_.lead else parameter, slice_.axis - len(slice_.lead)


def view(parameter: Tensor, slice_: Slice, units: int) -> Tensor:
    """The weights of all units, unit first: (units * width, rest) or (units * width,). A copy."""
    tensor, axis = part(parameter, slice_)
    index = positions(slice_, torch.arange(units, device=tensor.device))
    return tensor.index_select(axis, index).movedim(axis, 0)


def weights_of(model: nn.Module, site: Site, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """role -> (N * width, H) or (N * width,) float32 on a device, unfused. `out` too comes unit first."""
    weights: dict[str, Tensor] = {}
    for slice_ in site.slices:
        parameter, units = _own(model.get_parameter(slice_.parameter).detach(), slice_, site)
        weights[slice_.role] = view(parameter, slice_, units).to(device=device, dtype=torch.float32)
    return weights


class LazyWeights(Mapping[str, Tensor]):
    """As `weights_of`, read when first looked at: most statistics of a scorer that declared weights never do."""

    def __init__(self, read: Callable[[], Mapping[str, Tensor]]) -> None:
        self._read = read
        self._weights: Mapping[str, Tensor] | None = None

    def _get(self) -> Mapping[str, Tensor]:
        if self._weights is None:
            self._weights = self._read()
        return self._weights

    def __getitem__(self, role: str) -> Tensor:
        return self._get()[role]

    def __iter__(self) -> Iterator[str]:
        return iter(self._get())

    def __len__(self) -> int:
        return len(self._get())


def _own(parameter: Tensor, slice_: Slice, site: Site) -> tuple[Tensor, int]:
    """A parameter and its number of units of the site: all, or under tensor parallelism those of this rank.

    Raises:
        FairpruneError: it is sharded in another way; a shard is never treated as the whole parameter.
    """
    if not hasattr(parameter, "to_local"):
        return parameter, site.units
    local: Tensor = parameter.to_local()
    if site.local is not None and not slice_.lead and slice_.start == 0:
        units = site.local.stop - site.local.start
        if local.shape[slice_.axis] == units * slice_.width:
            return local, units
    raise FairpruneError(
        f"{slice_.parameter} is sharded over devices, {tuple(local.shape)} of {tuple(parameter.shape)} here: load the whole model to "
        "read its weights"
    )


def unit_parameters(model: nn.Module, site: Site) -> int:
    """Number of parameters of one unit of a site."""
    total = 0
    for slice_ in site.slices:
        tensor, axis = part(model.get_parameter(slice_.parameter), slice_)
        total += tensor.numel() // tensor.shape[axis] * slice_.width
    return total


def zero_(parameters: Mapping[str, Tensor], site: Site, units: Tensor, roles: frozenset[str] | None = None) -> None:
    """Set the slices of units to zero, in place."""
    for slice_ in site.slices:
        if roles is None or slice_.role in roles:
            tensor, axis = part(parameters[slice_.parameter], slice_)
            tensor.index_fill_(axis, positions(slice_, units.to(tensor.device)), 0)


def scale_(parameters: Mapping[str, Tensor], site: Site, units: Tensor, factor: float | Tensor) -> None:
    """Multiply the output weights of units by a factor, or (n,) a factor each, in place; this equals a multiplication of activations."""
    for slice_ in site.slices:
        if slice_.role == "out":
            tensor, axis = part(parameters[slice_.parameter], slice_)
            index = positions(slice_, units.to(tensor.device))
            by: float | Tensor = factor
            if isinstance(factor, Tensor):
                shape = [1] * tensor.ndim
                shape[axis] = -1
                by = factor.to(tensor.device, torch.float32).repeat_interleave(slice_.width).reshape(shape)
            tensor.index_copy_(axis, index, (tensor.index_select(axis, index) * by).to(tensor.dtype))


def kept_positions(length: int, slices: Sequence[tuple[Slice, Tensor]]) -> Tensor:
    """The remaining indices on an axis of `length` after removing the units of each slice, in order."""
    keep = torch.ones(length, dtype=torch.bool)
    for slice_, units in slices:
        keep[positions(slice_, units)] = False
    return keep.nonzero().squeeze(-1)


def cut(parameter: Tensor, slices: Sequence[tuple[Slice, Tensor]]) -> Tensor:
    """A new tensor without the units of each slice. Slices with different `lead` must lose equally many.

    Args:
        slices: (slice, units to remove) for every slice of this parameter.
    """
    axes = {slice_.axis for slice_, _ in slices}
    assert len(axes) == 1, "all slices of a parameter share one axis"
    axis = axes.pop()
    leads: dict[tuple[int, ...], list[tuple[Slice, Tensor]]] = {}
    for slice_, units in slices:
        leads.setdefault(slice_.lead, []).append((slice_, units))
    if list(leads) == [()]:
        return parameter.index_select(axis, kept_positions(parameter.shape[axis], leads[()]).to(parameter.device)).contiguous()
    assert all(len(lead) == 1 for lead in leads), "slices lead by one index, the expert"
    rows = []
    for expert in range(parameter.shape[0]):
        keep = kept_positions(parameter.shape[axis], leads.get((expert,), [])).to(parameter.device)
        rows.append(parameter[expert].index_select(axis - 1, keep))
    return torch.stack(rows).contiguous()


def set_parameter(model: nn.Module, name: str, value: Tensor | None) -> nn.Parameter | None:
    """Replace a parameter by a new tensor, or by none, update the widths of its Linear or Conv1D, and return the old one, if any."""
    path, _, attribute = name.rpartition(".")
    module: Any = model.get_submodule(path)
    old: nn.Parameter | None = getattr(module, attribute)
    if value is not None and not isinstance(value, nn.Parameter):
        like = module.weight if old is None else old
        value = nn.Parameter(value, requires_grad=like.requires_grad)
    put(module, attribute, value)
    return old
