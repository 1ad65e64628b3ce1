"""`fairprune restore`: a run folder or a pruned model's folder in, the original model out, checked before it appears."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fairprune_framework.errors import RunFolderError, UserError, VerificationFailed
from fairprune_framework.surgery import restoration as kept
from fairprune_framework.utilities import integrity
from fairprune_framework.utilities.files import move_folder, refuse_unwritable, sweep, temporary_folder
from fairprune_framework.utilities.schemas import RunRecord, read_checked


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
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> tuple[Any, Any]:
    """Load the pruned model, put back what was taken, and save it where `output` says.

    Args:
        folder: a run folder, or the folder of a pruned model.
        output: folder to make; it must not exist, or be empty. None: nothing is written.
        file: the restoration; by default the one in or beside the folder.
        trust_remote_code, allow_pickle: as `load_model`.

    Returns:
        (model, tokenizer), on the CPU, in the dtype that was pruned.

    Raises:
        UserError: no such model or restoration, one that belongs to another model, or an output that holds something.
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
    uneven.forget(model, restoration.slices)
    if target is None:
        return model, tokenizer
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target.parent, target.name)
    with temporary_folder(target) as temporary:
        fields = restoration.config
        save_like(source, temporary, model, parameters=sorted(restoration.slices), fields=fields, back=True)
        uneven.mark(temporary, model, restoration.slices)
        if weights_digest(load_model(str(temporary), trust_remote_code=trust_remote_code)[0]) != restoration.weights:
            raise VerificationFailed("the reloaded model is not the original. Nothing was kept.")
        move_folder(temporary, target)
    return model, tokenizer
