"""A plan carried out on a checkpoint that need not fit in memory: shard by shard, from safetensors to safetensors.

The files are those of `save_pruned_model`, byte for byte. No forward is computed: what was written is read again, and must give back
the original, bit by bit, with what the restoration holds.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairprune_framework.api.types import Plan
from fairprune_framework.errors import DiskFull, UserError, VerificationFailed
from fairprune_framework.models.architecture import Architecture
from fairprune_framework.models.checkpoint import Checkpoint
from fairprune_framework.models.loading import parameter_count
from fairprune_framework.models.saving import class_of, is_coarser, rounding_note, shards, write_beside, write_index
from fairprune_framework.models.uneven import FILE as UNEVEN
from fairprune_framework.models.uneven import check_plain, mark
from fairprune_framework.models.weights import Digest
from fairprune_framework.surgery import restoration as kept
from fairprune_framework.surgery.changes import changed_parameters, changes, pruned_in_place
from fairprune_framework.surgery.masking import check_fits
from fairprune_framework.surgery.obstacles import refuse_obstacles
from fairprune_framework.surgery.record import Removal, Sizes, report
from fairprune_framework.surgery.slices import unit_parameters
from fairprune_framework.surgery.widths import Widths, new_fields, stored_sites, stored_widths
from fairprune_framework.utilities.files import in_mb, move_folder, temporary_folder
from fairprune_framework.utilities.progress import Notify, silent
from fairprune_framework.utilities.tensor_files import TensorFile, write_one_by_one

NO_BIASES = "--shard-by-shard writes the tensors that are there, and --operator mean may need new biases: prune without it"
Change = Callable[[Tensor], Tensor]


def prune_by_shard(
    checkpoint: Checkpoint,
    plan: Plan,
    architecture: Architecture,
    target: Path,
    *,
    restoration: Path,
    round_to: int = 1,
    widths: Widths = "uniform",
    dtype: torch.dtype | None = None,
    notify: Notify = silent,
) -> Removal:
    """Write the model without the plan's units to `target`, and what was taken to `restoration`; the largest tensor of a shard, or the
    changed tensor of one layer, is in memory at a time.

    Args:
        target: folder that must not exist; it appears only when everything held.
        widths, round_to, dtype: as `save_pruned_model`.

    Returns:
        As `save_pruned_model`, without differences of logits.

    Raises:
        UserError: a plan for another model, or a model that cannot be cut.
        DiskFull: there is no room for what would be written; nothing is.
        VerificationFailed: what was written does not give back the original; nothing is kept.
    """
    model: Any = checkpoint.model
    fingerprint, weights = checkpoint.digests
    check_fits(plan, fingerprint, architecture)
    if plan.operator == "mean":
        raise UserError(NO_BIASES)
    refuse_obstacles(model, [architecture.sites[name] for name, units in plan.sites.items() if units], plan.operator, widths)
    if exact := widths == "exact" and plan.operator == "remove":
        check_plain(model)
    sites = stored_sites(architecture.sites, "exact" if exact else "uniform")
    stored = stored_widths(plan, sites, round_to)
    fields = new_fields(sites, stored, model.config.get_text_config())
    taken = kept.described(model, plan, sites, stored, exact=exact, round_to=round_to)
    pieces = {
        name: kept.piece(model.get_parameter(slice_.parameter).detach(), slice_, units)
        for name, (slice_, units) in kept.pieces(taken).items()
    }
    change = dict.fromkeys(changed_parameters(plan, sites), _same) | changes(plan, sites, stored)
    before = parameter_count(model)
    per_unit = {name: unit_parameters(model, site) for name, site in sites.items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(target) as temporary, pruned_in_place(model, plan, sites, stored):
        like = _written_as(checkpoint, change, dtype)
        _refuse_full(target.parent, like)
        hashes: dict[str, str] = {}
        rounded = _write_shards(checkpoint, temporary, change, like, hashes, notify, dtype)
        write_index(checkpoint.folder, temporary, sum(map(_bytes, (each for file in like.values() for each in file.values()))))
        write_beside(checkpoint.folder, temporary, model.config, fields=fields, dtype=dtype)
        if exact or (temporary / UNEVEN).is_file():
            mark(temporary, model, list(change))
        written = Checkpoint(temporary, model)
        taken = replace(taken, weights=weights, hashes=hashes, tensors=_Pieces(checkpoint, taken, pieces))
        notify("reading again what was written")
        taken = replace(taken, pruned=_verified(written, taken))
        after, size = parameter_count(model), sum(file.stat().st_size for file in shards(temporary))
        notes = rounding_note(rounded)
        if (whole := class_of(checkpoint.folder)) not in (None, type(model).__name__):
            notes.append(f"the other parts of the {whole} are kept as they are")
        write_one_by_one(restoration, pieces, taken.tensors.__getitem__, kept.header(taken))
        move_folder(temporary, target)
    sizes = Sizes(
        parameters_before=before,
        parameters_after=after,
        bytes_before=sum(file.stat().st_size for file in shards(checkpoint.folder)),
        bytes_after=size,
    )
    return report(plan, sites, per_unit, stored, sizes, None, None, tuple(notes))


def _same(value: Tensor) -> Tensor:
    return value


def _bytes(like: Tensor) -> int:
    return math.prod(like.shape) * like.element_size()


def _written_as(
    checkpoint: Checkpoint, change: Mapping[str, Change], dtype: torch.dtype | None
) -> dict[str, dict[str, Tensor]]:
    """Shard -> name there -> a tensor of the shape and dtype to write, on the meta device; the checkpoint's model is pruned already."""
    ours = {checkpoint.stored_as[name]: name for name in change}
    found: dict[str, dict[str, Tensor]] = {}
    for shard, file in checkpoint.shards.items():
        found[shard] = {}
        for name in file:
            stored = file[name]
            shape = checkpoint.model.get_parameter(ours[name]).shape if name in ours else stored.shape
            wanted = dtype if dtype is not None and stored.is_floating_point() else stored.dtype
            found[shard][name] = torch.empty(shape, dtype=wanted, device="meta")
    return found


def _refuse_full(folder: Path, like: Mapping[str, Mapping[str, Tensor]]) -> None:
    need = sum(_bytes(each) for file in like.values() for each in file.values())
    if need > (free := shutil.disk_usage(folder).free):
        raise DiskFull(f"the pruned model takes {in_mb(need)}, and {folder} has {in_mb(free)} free. Nothing was written")


def _write_shards(
    checkpoint: Checkpoint,
    folder: Path,
    change: Mapping[str, Change],
    like: Mapping[str, Mapping[str, Tensor]],
    hashes: dict[str, str],
    notify: Notify,
    dtype: torch.dtype | None,
) -> list[tuple[torch.dtype, torch.dtype]]:
    """Write the shards, and note the sha256 of every changed parameter as it was.

    Returns: (stored, computed) dtypes of changed tensors that were rounded.
    """
    ours = {checkpoint.stored_as[name]: name for name in change}
    rounded: list[tuple[torch.dtype, torch.dtype]] = []
    for number, (shard, file) in enumerate(checkpoint.shards.items(), 1):

        def read(name: str, file: TensorFile = file, wanted: Mapping[str, Tensor] = like[shard]) -> Tensor:
            if name not in ours:
                return file[name].to(wanted[name].dtype)
            value = checkpoint.read(ours[name])
            hashes[ours[name]] = kept.bytes_hash(value)
            if dtype is None and is_coarser(value.dtype, wanted[name].dtype):
                rounded.append((wanted[name].dtype, value.dtype))
            with torch.no_grad():
                return change[ours[name]](value).to(wanted[name].dtype)

        write_one_by_one(folder / shard, like[shard], read, file.metadata or {"format": "pt"})
        notify(f"{shard}: {number} of {len(checkpoint.shards)}")
    return rounded


class _Pieces(Mapping[str, Tensor]):
    """The tensors of a restoration, each read from the original when it is asked for.

    Args:
        like: name -> a tensor of its shape and dtype.
    """

    def __init__(self, checkpoint: Checkpoint, taken: kept.Restoration, like: Mapping[str, Tensor]) -> None:
        self._checkpoint, self._pieces, self._like = checkpoint, kept.pieces(taken), like

    def __getitem__(self, name: str) -> Tensor:
        slice_, units = self._pieces[name]
        return kept.piece(self._checkpoint.stored(slice_.parameter), slice_, units).to(self._like[name].dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._pieces)

    def __len__(self) -> int:
        return len(self._pieces)


def _verified(written: Checkpoint, taken: kept.Restoration) -> str:
    """The fingerprint of what was written, of which every bit was read again.

    Raises:
        VerificationFailed: with what was taken put back it is not the original, bit by bit.
    """
    pruned, restored = Digest(exact=False), Digest(exact=True)
    for name, value in written.tensors():
        pruned.add(name, value)
        restored.add(name, kept.whole(value, taken, name) if name in taken.slices else value)
    if restored.hexdigest() != taken.weights:
        raise VerificationFailed("what was written does not give back the original. Nothing was kept.")
    return pruned.hexdigest()
