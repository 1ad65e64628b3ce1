"""`fairprune restore`: a run folder or a pruned model's folder in, the original model out, checked before it appears; or the model as
it would be, had a part of the plan not been carried out.

Files are made from files, tensor by tensor. Where the model must be built to know its tensors (code that comes with it, modules that
are kept in float32), or new biases be computed, it is loaded instead; what is written is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairprune_framework.api.widths import read_field
from fairprune_framework.errors import RunFolderError, UserError, VerificationFailed
from fairprune_framework.surgery import restoration as kept
from fairprune_framework.surgery import undoing
from fairprune_framework.surgery.partial import Part, without
from fairprune_framework.utilities import integrity
from fairprune_framework.utilities.files import (
    RUN_RECORD,
    move_folder,
    refuse_inside,
    refuse_part_of_run,
    refuse_unwritable,
    sweep,
    temporary_folder,
    write_json,
)
from fairprune_framework.utilities.schemas import RunRecord, read_checked

if TYPE_CHECKING:
    from fairprune_framework.api.types import Plan
    from fairprune_framework.models.architecture import Architecture
    from fairprune_framework.models.checkpoint import Checkpoint
    from fairprune_framework.recipes.recipe import PluginSpec
    from fairprune_framework.surgery.widths import Widths


Load = Callable[[str], tuple[Any, Any]]
"""Folder -> model and tokenizer."""


@dataclass(frozen=True, kw_only=True)
class Restored:
    """A model that got back what was taken from it."""

    parameters: int
    fingerprint: str
    back: int
    """Neurons that are as they were in the original."""
    out: int
    """Neurons that are still removed, zeroed, scaled or held."""


def found_in(folder: Path, file: str | Path | None = None) -> tuple[Path, Path]:
    """The pruned model's folder and the restoration that belongs to it.

    Raises:
        UserError: there is nothing of the kind; the text says what was looked for.
    """
    if (folder / RUN_RECORD).is_file():
        model, beside = folder / "model", folder / kept.FILE
        if not model.is_dir():
            raise RunFolderError(f"{folder} holds no pruned model: its run abstained, or `fairprune prune` was not run")
        pruned = read_checked(folder / "run.json", RunRecord)["stages"].get("prune")
        if file is None and pruned is not None and (damage := integrity.damage(folder, pruned["files"])) is not None:
            raise RunFolderError(f"{damage}: do the stage 'prune' again with `fairprune prune --overwrite`")
    elif (folder / "config.json").is_file():
        inside = folder / kept.FILE
        model, beside = folder, inside if inside.is_file() else folder.absolute().parent / kept.FILE
    else:
        raise UserError(f"{folder} is neither a run folder (no run.json) nor a model (no config.json)")
    return model, beside if file is None else Path(file)


def restored_model(
    folder: Path,
    file: str | Path | None = None,
    *,
    part: Part | None = None,
    architecture: PluginSpec | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> tuple[Any, Any]:
    """The model that `restore_folder` writes, and its tokenizer, on the CPU, in the dtype that was pruned; nothing is written.

    Args:
        folder, file, part, architecture, trust_remote_code, allow_pickle: as `restore_folder`.

    Raises:
        UserError, VerificationFailed: as `restore_folder`.
    """
    from fairprune_framework.models.loading import load_model

    source, beside = found_in(folder, file)
    _refuse_idle(part, architecture)
    load = partial(load_model, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
    model, tokenizer, _ = _in_memory(source, kept.load(beside), part, architecture, load)
    return model, tokenizer


def restore_folder(
    folder: Path,
    output: str | Path,
    file: str | Path | None = None,
    *,
    part: Part | None = None,
    architecture: PluginSpec | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> Restored:
    """Put back what was taken from a pruned model, and save the model where `output` says; the largest tensors are in memory at a time.

    Of a part, bit by bit the model is made that the plan without it makes of the original; `output` then holds a restoration for what
    is still out, and `plan.json` of it.

    Args:
        folder: a run folder, or the folder of a pruned model.
        output: folder to make; it must not exist, or be empty.
        file: the restoration; by default the one in or beside the folder.
        part: the neurons to put back; None: all.
        architecture: adapter that knows the original, where a part is put back; None: the one that fits.
        trust_remote_code, allow_pickle: as `load_model`.

    Raises:
        UserError: no such model or restoration, one that belongs to another model, a part that is none, or an output that holds
            something.
        VerificationFailed: what would come out is not, bit by bit, the original; nothing is written.
    """
    from fairprune_framework.models.loading import load_model

    source, beside = found_in(folder, file)
    if output == "":
        raise UserError("--output must name a folder. Got '' instead.")
    target = Path(output)
    refuse_unwritable(target)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{target} exists and is not empty: choose another --output")
    refuse_inside(target, source)
    refuse_part_of_run(target)
    _refuse_idle(part, architecture)
    restoration = kept.load(beside)
    load = partial(load_model, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
    pruned = _read_by_shard(source, restoration, part)
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target.parent, target.name)
    with temporary_folder(target) as temporary:
        if pruned is None:
            done = _write_loaded(source, temporary, restoration, part, architecture, load)
        else:
            done = _write_by_shard(pruned, temporary, restoration, part, architecture)
        move_folder(temporary, target)
    return done


def _refuse_idle(part: Part | None, architecture: PluginSpec | None) -> None:
    if architecture is not None and not part:
        raise UserError("--architecture says where the neurons of a part are: give --layer, --category or --neuron too")


def _read_by_shard(source: Path, restoration: kept.Restoration, part: Part | None) -> Checkpoint | None:
    """The pruned model's files; None: it must be loaded, to be built or to compute biases."""
    from fairprune_framework.models.checkpoint import open_checkpoint

    if part and restoration.plan.operator == "mean":
        return None
    try:
        return open_checkpoint(str(source))
    except UserError:
        return None


def _write_by_shard(
    pruned: Checkpoint, folder: Path, restoration: kept.Restoration, part: Part | None, spec: PluginSpec | None
) -> Restored:
    from fairprune_framework.models import uneven
    from fairprune_framework.models.architecture import recognise
    from fairprune_framework.models.checkpoint import Checkpoint
    from fairprune_framework.models.loading import parameter_count
    from fairprune_framework.models.saving import write_beside
    from fairprune_framework.surgery.by_shard import refuse_full, write_pruned, write_shards
    from fairprune_framework.surgery.masking import check_fits
    from fairprune_framework.surgery.original import Original

    original = Original(pruned, restoration)
    model, plan = original.model, restoration.plan
    if part:
        original.check()
        architecture = recognise(model, spec)
        check_fits(plan, original.digests[0], architecture)
        if rest := _without(restoration, part, architecture):
            widths: Widths = "exact" if restoration.exact else "uniform"
            file, fields = folder / kept.FILE, tuple(restoration.config)
            done = write_pruned(
                original,
                rest,
                architecture,
                folder,
                restoration=file,
                round_to=restoration.round_to,
                widths=widths,
                again=fields,
            )
            write_json(folder / "plan.json", rest.to_json())
            found = kept.load(file).pruned
            return Restored(parameters=done.parameters_after, fingerprint=found, back=plan.count - rest.count, out=rest.count)
    like = {shard: {name: file.like(name) for name in file} for shard, file in original.shards.items()}
    refuse_full(folder.parent, like)
    write_shards(original, folder, {}, like)
    write_beside(original.folder, folder, model.config, fields=restoration.config, back=True)
    uneven.mark(folder, model, restoration.slices)
    fingerprint, weights = Checkpoint(folder, model).digests
    if weights != restoration.weights:
        original.check()
        raise VerificationFailed("what was written is not the restored model. Nothing was kept.")
    return Restored(parameters=parameter_count(model), fingerprint=fingerprint, back=plan.count, out=0)


def _write_loaded(
    source: Path,
    folder: Path,
    restoration: kept.Restoration,
    part: Part | None,
    spec: PluginSpec | None,
    load: Load,
) -> Restored:
    from fairprune_framework.models import uneven
    from fairprune_framework.models.loading import parameter_count
    from fairprune_framework.models.saving import save_like
    from fairprune_framework.models.weights import fingerprint, weights_digest

    model, _, rest = _in_memory(source, restoration, part, spec, load)
    config: Any = model.config
    config = config.get_text_config()
    fields = restoration.config if rest is None else {field: read_field(config, field) for field in restoration.config}
    again = () if rest is None else rest.added
    dropped = [name for name in restoration.added if name not in again]
    changed = sorted({*restoration.slices, *again})
    save_like(source, folder, model, parameters=changed, fields=fields, back=True, dropped=dropped)
    uneven.mark(folder, model, changed)
    if weights_digest(load(str(folder))[0]) != weights_digest(model):
        raise VerificationFailed("the reloaded model is not the restored one. Nothing was kept.")
    if rest is not None:
        kept.save(rest, folder / kept.FILE)
        write_json(folder / "plan.json", rest.plan.to_json())
    out = 0 if rest is None else rest.plan.count
    found = fingerprint(model)
    return Restored(parameters=parameter_count(model), fingerprint=found, back=restoration.plan.count - out, out=out)


def _in_memory(
    source: Path,
    restoration: kept.Restoration,
    part: Part | None,
    spec: PluginSpec | None,
    load: Load,
) -> tuple[Any, Any, kept.Restoration | None]:
    """The restored model, its tokenizer, and what undoes the plan without a part; None where nothing is left to undo."""
    from fairprune_framework.models import uneven

    model, tokenizer = load(str(source))
    undoing.restore_in_place(model, restoration)
    rest = _carried_out_again(model, restoration, part, spec) if part else None
    uneven.forget(model, {*restoration.slices, *restoration.added})
    return model, tokenizer, rest


def _carried_out_again(
    model: Any, restoration: kept.Restoration, part: Part, spec: PluginSpec | None
) -> kept.Restoration | None:
    """Carry out, on the original, the plan without a part of it.

    Returns: what undoes that; None where nothing is left to carry out.
    """
    from fairprune_framework.models.architecture import recognise
    from fairprune_framework.models.weights import fingerprint
    from fairprune_framework.surgery.changes import carry_out
    from fairprune_framework.surgery.masking import check_plan
    from fairprune_framework.surgery.widths import stored_sites, stored_widths

    architecture = recognise(model, spec)
    check_plan(restoration.plan, model, architecture)
    rest = _without(restoration, part, architecture)
    if rest is None:
        return None
    sites = stored_sites(architecture.sites, "exact" if restoration.exact else "uniform")
    widths = stored_widths(rest, sites, restoration.round_to)
    captured = kept.capture(model, rest, sites, widths, "", exact=restoration.exact, round_to=restoration.round_to)
    carry_out(model, rest, sites, widths)
    return replace(captured, pruned=fingerprint(model))


def _without(restoration: kept.Restoration, part: Part, architecture: Architecture) -> Plan | None:
    """The plan without a part of it; None where nothing is left."""
    _refuse_other_slices(architecture.sites, restoration, architecture.name)
    rest = without(restoration.plan, part.of(restoration.plan, architecture.sites))
    return rest if rest.count else None


def _refuse_other_slices(sites: Mapping[str, Any], restoration: kept.Restoration, name: str) -> None:
    """Raise `UserError` where an adapter finds planned neurons in other places than the one with which they were taken."""
    pieces = [piece for each in restoration.slices.values() for piece in each]
    taken = {(site, slice_) for site, slice_ in pieces if slice_.role != "out_bias"}
    if {(site, slice_) for site in restoration.units for slice_ in sites[site].slices} != taken:
        raise UserError(f"the neurons were taken from other places than {name} names: give --architecture of the run")
