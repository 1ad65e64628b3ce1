"""`fairprune restore`: a run folder or a pruned model's folder in, the original model out, checked before it appears; or the model as
it would be, had a part of the plan not been carried out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairprune_framework.api.widths import read_field
from fairprune_framework.errors import RunFolderError, UserError, VerificationFailed
from fairprune_framework.surgery import restoration as kept
from fairprune_framework.surgery.partial import Part, without
from fairprune_framework.utilities import integrity
from fairprune_framework.utilities.files import move_folder, refuse_unwritable, sweep, temporary_folder, write_json
from fairprune_framework.utilities.schemas import RunRecord, read_checked

if TYPE_CHECKING:
    from fairprune_framework.recipes.recipe import PluginSpec


@dataclass(frozen=True, kw_only=True)
class Restored:
    """A model that got back what was taken from it."""

    model: Any
    tokenizer: Any
    back: int
    """Neurons that are as they were in the original."""
    out: int
    """Neurons that are still removed, zeroed, scaled or held."""


def found_in(folder: Path, file: str | Path | None = None) -> tuple[Path, Path]:
    """The pruned model's folder and the restoration that belongs to it.

    Raises:
        UserError: there is nothing of the kind; the text says what was looked for.
    """
    if (folder / "run.json").is_file():
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


def restore_folder(
    folder: Path,
    output: str | Path | None = None,
    file: str | Path | None = None,
    *,
    part: Part | None = None,
    architecture: PluginSpec | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> Restored:
    """Load the pruned model, put back what was taken, and save it where `output` says.

    Of a part, bit by bit the model is made that the plan without it makes of the original; `output` then holds a restoration for what
    is still out, and `plan.json` of it.

    Args:
        folder: a run folder, or the folder of a pruned model.
        output: folder to make; it must not exist, or be empty. None: nothing is written.
        file: the restoration; by default the one in or beside the folder.
        part: the neurons to put back; None: all.
        architecture: adapter that knows the original, where a part is put back; None: the one that fits.
        trust_remote_code, allow_pickle: as `load_model`.

    Returns:
        The model on the CPU, in the dtype that was pruned.

    Raises:
        UserError: no such model or restoration, one that belongs to another model, a part that is none, or an output that holds
            something.
        VerificationFailed: what would come out is not, bit by bit, the original; nothing is written.
    """
    from fairprune_framework.models import uneven
    from fairprune_framework.models.loading import load_model
    from fairprune_framework.models.saving import save_like
    from fairprune_framework.models.weights import weights_digest

    source, beside = found_in(folder, file)
    if output == "":
        raise UserError("--output must name a folder. Got '' instead.")
    target = None if output is None else Path(output)
    if target is not None:
        refuse_unwritable(target)
    if target is not None and target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{target} exists and is not empty: choose another --output")
    restoration = kept.load(beside)
    model, tokenizer = load_model(str(source), trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
    kept.restore_in_place(model, restoration)
    rest = _carried_out_again(model, restoration, part, architecture) if part else None
    out = 0 if rest is None else rest.plan.count
    done = Restored(model=model, tokenizer=tokenizer, back=restoration.plan.count - out, out=out)
    uneven.forget(model, {*restoration.slices, *restoration.added})
    if target is None:
        return done
    expected = restoration.weights if rest is None else weights_digest(model)
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target.parent, target.name)
    with temporary_folder(target) as temporary:
        config: Any = model.config
        config = config.get_text_config()
        fields = restoration.config if rest is None else {field: read_field(config, field) for field in restoration.config}
        again = () if rest is None else rest.added
        dropped = [name for name in restoration.added if name not in again]
        changed = sorted({*restoration.slices, *again})
        save_like(source, temporary, model, parameters=changed, fields=fields, back=True, dropped=dropped)
        uneven.mark(temporary, model, changed)
        if weights_digest(load_model(str(temporary), trust_remote_code=trust_remote_code)[0]) != expected:
            raise VerificationFailed("the reloaded model is not the restored one. Nothing was kept.")
        if rest is not None:
            kept.save(rest, temporary / kept.FILE)
            write_json(temporary / "plan.json", rest.plan.to_json())
        move_folder(temporary, target)
    return done


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

    architecture, plan = recognise(model, spec), restoration.plan
    check_plan(plan, model, architecture)
    _refuse_other_slices(architecture.sites, restoration, architecture.name)
    rest = without(plan, part.of(plan, architecture.sites))
    if rest.count == 0:
        return None
    sites = stored_sites(architecture.sites, "exact" if restoration.exact else "uniform")
    widths = stored_widths(rest, sites, restoration.round_to)
    captured = kept.capture(model, rest, sites, widths, "", exact=restoration.exact, round_to=restoration.round_to)
    carry_out(model, rest, sites, widths)
    return replace(captured, pruned=fingerprint(model))


def _refuse_other_slices(sites: Mapping[str, Any], restoration: kept.Restoration, name: str) -> None:
    """Raise `UserError` where an adapter finds planned neurons in other places than the one with which they were taken."""
    pieces = [piece for each in restoration.slices.values() for piece in each]
    taken = {(site, slice_) for site, slice_ in pieces if slice_.role != "out_bias"}
    if {(site, slice_) for site in restoration.units for slice_ in sites[site].slices} != taken:
        raise UserError(f"the neurons were taken from other places than {name} names: give --architecture of the run")
