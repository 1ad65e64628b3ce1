"""What a restoration kept goes back into the pruned model, bit by bit, or is refused: it must be of this model, and fit it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fairprune_framework.api.types import Slice
from fairprune_framework.api.widths import read_field, write_field
from fairprune_framework.errors import NotTheOriginal, UserError, shown
from fairprune_framework.models.weights import fingerprint, weights_digest
from fairprune_framework.surgery.biases import FIELDS
from fairprune_framework.surgery.restoration import WHOLE, Restoration, bytes_hash
from fairprune_framework.surgery.slices import kept_positions, part, positions, set_parameter


@torch.no_grad()
def restore_in_place(model: nn.Module, restoration: Restoration) -> None:
    """Make the pruned model the original again, in place.

    Raises:
        UserError: it is not the model that this restoration undoes.
        NotTheOriginal: a weight is not, bit by bit, what it was; all are compared.
    """
    refuse_other(restoration, fingerprint(model))

    def value(name: str, old: Tensor) -> Tensor:
        new = whole(old, restoration, name)
        refuse_changed(restoration, {name: bytes_hash([new])})
        return new

    put_back(model, restoration, value)
    refuse_unlike(restoration, weights_digest(model))


def refuse_other(restoration: Restoration, actual: str) -> None:
    """Raise `UserError` unless this is the fingerprint of the model that a restoration undoes."""
    if actual != restoration.pruned:
        raise UserError(
            f"the restoration is for another model: it undoes {restoration.pruned[:12]} (from {restoration.plan.model}), "
            f"this one is {actual[:12]}"
        )


def refuse_changed(restoration: Restoration, hashes: Mapping[str, str]) -> None:
    """Raise `NotTheOriginal` where a parameter has not the sha256 that it had."""
    for name, found in hashes.items():
        if found != restoration.hashes[name]:
            raise NotTheOriginal(f"{name} would not be what it was: the restoration or the model is damaged")


def refuse_unlike(restoration: Restoration, actual: str) -> None:
    """Raise `NotTheOriginal` unless this is the digest of the original."""
    if actual != restoration.weights:
        raise NotTheOriginal(
            f"the weights of the restored model are {actual[:12]}, those of the original were {restoration.weights[:12]}: one that "
            "the removal did not touch was changed since"
        )


def put_back(model: nn.Module, restoration: Restoration, value: Callable[[str, Tensor], Tensor]) -> None:
    """Give a pruned model the parameters and the config that it had.

    Args:
        model: may be on the meta device.
        value: (name, parameter as it is) -> as it was.

    Raises:
        UserError: the sizes in the restoration are not those of this model.
    """
    config: Any = model.config
    config = config.get_text_config()
    _refuse_misfit(model, config, restoration)
    for name in restoration.slices:
        set_parameter(model, name, value(name, model.get_parameter(name).detach()))
    for name in restoration.added:
        set_parameter(model, name, None)
    for field, was in restoration.config.items():
        write_field(config, field, was)


def _refuse_misfit(model: nn.Module, config: Any, restoration: Restoration) -> None:
    """Raise `UserError` where sizes in a restoration are not those of this model and its cut units; nothing is allocated before."""
    from huggingface_hub.errors import StrictDataclassError

    known = dict(model.named_parameters())
    changes: set[tuple[int, int]] = set()
    """(size in the pruned model, as it was): a width of the config changed as one of them did."""
    for name, shape in restoration.shapes.items():
        axes = {slice_.axis for _, slice_ in restoration.slices[name]}
        leads: dict[tuple[int, ...], int] = {}
        for site, slice_ in restoration.slices[name]:
            went = 0 if slice_.role == "out_bias" else len(restoration.units[site][0]) * slice_.width
            leads[slice_.lead] = leads.get(slice_.lead, 0) + went
        have = tuple(known[name].shape) if name in known else None
        gone = set(leads.values())
        whole = len(leads) == 1 or gone == {0} or len(leads) == shape[0]
        if len(axes) != 1 or len(gone) != 1 or not whole:
            raise UserError(f"the restoration is damaged: the pieces of {shown(name)} do not make a whole")
        wanted = tuple(size - min(gone) if axis in axes else size for axis, size in enumerate(shape))
        if have != wanted:
            raise UserError(f"the restoration is damaged: {shown(name)} would be {wanted} in the pruned model, and is {have}")
        changes |= {(wanted[axis], shape[axis]) for axis in axes}
    for name in restoration.added:
        if name not in known or not isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Linear):
            raise UserError(f"the restoration is damaged: {shown(name)} is no bias of the pruned model")
    for field, value in restoration.config.items():
        have_now = read_field(config, field)
        if field in FIELDS and have_now is True:
            continue
        if type(have_now) is not int or not _fits(value, have_now, changes):
            raise UserError(f"the restoration is damaged: its config field {field} is {value}, the model's {shown(have_now)}")
        try:
            write_field(copy.deepcopy(config), field, value)
        except StrictDataclassError as error:
            raise UserError(f"the restoration is damaged: its config field {field} cannot be {value} in this model") from error


def _fits(value: int | None, have_now: int, changes: Iterable[tuple[int, int]]) -> bool:
    return value is None or value == have_now or any(value * now == have_now * before for now, before in changes)


def whole(kept: Tensor, restoration: Restoration, name: str) -> Tensor:
    """A parameter as it was: what was kept on its old places, what was taken on its own."""
    shape = restoration.shapes[name]
    for site, slice_ in restoration.slices[name]:
        if slice_.role in WHOLE:
            return restoration.tensors[f"{site}/{slice_.role}"].to(device=kept.device, dtype=kept.dtype)
    result = torch.empty(shape, dtype=kept.dtype, device=kept.device)
    leads: dict[tuple[int, ...], list[tuple[str, Slice]]] = {}
    for site, slice_ in restoration.slices[name]:
        leads.setdefault(slice_.lead, []).append((site, slice_))
    if kept.shape == result.shape:
        result.copy_(kept)  # an expert that lost nothing has no slice here
    for lead, entries in leads.items():
        target, axis = part(result, entries[0][1])
        source = kept[lead] if lead else kept
        gone = [(slice_, torch.tensor(restoration.units[site][0], dtype=torch.long)) for site, slice_ in entries]
        target.index_copy_(axis, kept_positions(target.shape[axis], gone).to(kept.device), source)
        for site, slice_ in entries:
            index = positions(slice_, torch.tensor([unit for units in restoration.units[site] for unit in units]))
            values = restoration.tensors[f"{site}/{slice_.role}"].to(device=kept.device, dtype=kept.dtype)
            target.index_copy_(axis, index.to(kept.device), values.movedim(0, axis))
    return result
