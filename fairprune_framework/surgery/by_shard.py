"""A plan carried out on a checkpoint that need not fit in memory: shard by shard, from safetensors to safetensors.

The files are those of `save_pruned_model`, byte for byte. No forward is computed: what was written is read again, and must give back
the original, bit by bit, with what the restoration holds.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairprune_framework.api.types import Plan
from fairprune_framework.api.widths import read_field
from fairprune_framework.errors import DiskFull, UserError, VerificationFailed
from fairprune_framework.models.architecture import Architecture
from fairprune_framework.models.checkpoint import Checkpoint
from fairprune_framework.models.loading import parameter_count
from fairprune_framework.models.saving import class_of, is_coarser, rounding_note, shards, write_beside, write_index
from fairprune_framework.models.uneven import FILE as UNEVEN
from fairprune_framework.models.uneven import check_plain, mark
from fairprune_framework.models.weights import Digest
from fairprune_framework.surgery import restoration as kept
from fairprune_framework.surgery import undoing
from fairprune_framework.surgery.changes import changed_parameters, changes, pruned_in_place
from fairprune_framework.surgery.in_files import Pieces, restoration_in_files, sites_in_files
from fairprune_framework.surgery.masking import check_fits
from fairprune_framework.surgery.obstacles import refuse_obstacles
from fairprune_framework.surgery.record import Removal, Sizes, report
from fairprune_framework.surgery.slices import unit_parameters
from fairprune_framework.surgery.widths import Widths, new_fields, stored_sites, stored_widths
from fairprune_framework.utilities.files import in_mb, move_folder, temporary_folder
from fairprune_framework.utilities.progress import Notify, silent
from fairprune_framework.utilities.tensor_files import Tensors, write_one_by_one

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
    target.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(target) as temporary:
        done = write_pruned(
            checkpoint,
            plan,
            architecture,
            temporary,
            restoration=restoration,
            round_to=round_to,
            widths=widths,
            dtype=dtype,
            notify=notify,
        )
        move_folder(temporary, target)
    return done


def write_pruned(
    checkpoint: Checkpoint,
    plan: Plan,
    architecture: Architecture,
    folder: Path,
    *,
    restoration: Path,
    round_to: int,
    widths: Widths,
    dtype: torch.dtype | None = None,
    again: Collection[str] | None = None,
    notify: Notify = silent,
) -> Removal:
    """As `prune_by_shard`, in a folder that is there and empty, and that the caller removes where this raises.

    Args:
        again: where the files of `checkpoint` are of a pruned model that was put back, the config fields that were changed in them.
    """
    model: Any = checkpoint.model
    config = model.config.get_text_config()
    fingerprint, weights = checkpoint.digests
    check_fits(plan, fingerprint, architecture)
    if plan.operator == "mean":
        raise UserError(NO_BIASES)
    refuse_obstacles(model, [architecture.sites[name] for name, units in plan.sites.items() if units], plan.operator, widths)
    if exact := widths == "exact" and plan.operator == "remove":
        check_plain(model)
    sites = stored_sites(architecture.sites, "exact" if exact else "uniform")
    stored = stored_widths(plan, sites, round_to)
    fields = new_fields(sites, stored, config)
    changed = sorted({*changed_parameters(plan, sites), *changes(plan, sites, stored)})
    change: dict[str, Change] = dict.fromkeys(
        (theirs for name in changed for theirs in checkpoint.layout.stored_as[name]), _same
    )
    change |= changes(plan, sites_in_files(sites, changed, checkpoint.layout), stored)
    like = _written_as(checkpoint, change, dtype)
    refuse_full(folder.parent, like)
    taken = kept.described(model, plan, sites, stored, exact=exact, round_to=round_to)
    hashes = {name: kept.bytes_hash(checkpoint.parts(name)) for name in taken.slices}
    taken = replace(taken, weights=weights, hashes=hashes, tensors=Pieces(checkpoint, taken))
    in_files = restoration_in_files(taken, checkpoint.layout)
    pieces = {
        name: kept.piece(model.get_parameter(slice_.parameter).detach(), slice_, units)
        for name, (slice_, units) in kept.pieces(taken).items()
    }
    before = parameter_count(model)
    per_unit = {name: unit_parameters(model, site) for name, site in sites.items()}
    with pruned_in_place(model, plan, sites, stored):
        notes = rounding_note(write_shards(checkpoint, folder, change, like, notify, dtype))
        fields = {field: read_field(config, field) for field in again or ()} | fields
        write_beside(checkpoint.folder, folder, model.config, fields=fields, dtype=dtype, back=again is not None)
        if exact or (folder / UNEVEN).is_file():
            mark(folder, model, changed)
        notify("reading again what was written")
        taken = replace(taken, pruned=_verified(Checkpoint(folder, model), taken, in_files))
        after, size = parameter_count(model), sum(file.stat().st_size for file in shards(folder))
    if (whole := class_of(checkpoint.folder)) not in (None, type(model).__name__):
        notes.append(f"the other parts of the {whole} are kept as they are")
    write_one_by_one(restoration, pieces, taken.tensors.__getitem__, kept.header(taken))
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
    """Shard -> name there -> a tensor of the shape and dtype to write, on the meta device."""
    found: dict[str, dict[str, Tensor]] = {}
    for shard, file in checkpoint.shards.items():
        found[shard] = {}
        for name in file:
            stored = file.like(name)
            wanted = dtype if dtype is not None and stored.is_floating_point() else stored.dtype
            shape = change[name](stored).shape if name in change else stored.shape
            found[shard][name] = torch.empty(shape, dtype=wanted, device="meta")
    return found


def refuse_full(folder: Path, like: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Raise `DiskFull` where tensors (shard -> name -> as which it is written) do not fit on the disk of a folder."""
    need = sum(_bytes(each) for file in like.values() for each in file.values())
    if need > (free := shutil.disk_usage(folder).free):
        raise DiskFull(
            f"the disk is full: the model takes {in_mb(need)}, and {folder} has {in_mb(free)} free. Nothing was written"
        )


def write_shards(
    checkpoint: Checkpoint,
    folder: Path,
    change: Mapping[str, Change],
    like: Mapping[str, Mapping[str, Tensor]],
    notify: Notify = silent,
    dtype: torch.dtype | None = None,
) -> list[tuple[torch.dtype, torch.dtype]]:
    """Write the shards of a checkpoint, and their index where it has one.

    Args:
        change: tensor of a file -> what makes its new value of the old one.
        like: shard -> name there -> a tensor of the shape and dtype to write.
        dtype: that of all floating-point tensors, where one is asked for.

    Returns: (stored, computed) dtypes of changed tensors that were rounded.
    """
    rounded: list[tuple[torch.dtype, torch.dtype]] = []
    for number, (shard, file) in enumerate(checkpoint.shards.items(), 1):

        def read(name: str, file: Tensors = file, wanted: Mapping[str, Tensor] = like[shard]) -> Tensor:
            if name not in change:
                return file[name].to(wanted[name].dtype)
            value = checkpoint.part(name)
            if dtype is None and is_coarser(value.dtype, wanted[name].dtype):
                rounded.append((wanted[name].dtype, value.dtype))
            with torch.no_grad():
                return change[name](value).to(wanted[name].dtype)

        write_one_by_one(folder / shard, like[shard], read, file.metadata or {"format": "pt"})
        notify(f"{shard}: {number} of {len(checkpoint.shards)}")
    size = sum(_bytes(each) for file in like.values() for each in file.values())
    write_index(checkpoint.folder, folder, size, {name: shard for shard, file in like.items() for name in file})
    return rounded


def _verified(written: Checkpoint, taken: kept.Restoration, in_files: kept.Restoration) -> str:
    """The fingerprint of what was written, of which every bit was read again.

    Args:
        in_files: what was taken, by the tensors of the files.

    Raises:
        VerificationFailed: with what was taken put back it is not the original, bit by bit.
    """
    pruned, restored = Digest(exact=False), Digest(exact=True)
    for name, like in written.layout.like.items():
        pruned.begin(name, like)
        restored.begin(name, like.new_empty(taken.shapes.get(name, like.shape)))
        for stored in written.layout.stored_as[name]:
            value = written.part(stored)
            pruned.feed(value)
            restored.feed(undoing.whole(value, in_files, stored) if stored in in_files.slices else value)
            del value  # before the next is read
        pruned.end()
        restored.end()
    if restored.hexdigest() != taken.weights:
        raise VerificationFailed("what was written does not give back the original. Nothing was kept.")
    return pruned.hexdigest()
