"""A run folder, new or existing, and the options given with it, made into a `Run`."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from fairprune_framework.errors import RunFolderError, UserError, shortened
from fairprune_framework.models.loaded import LoadedModel
from fairprune_framework.recipes.loading import (
    load_recipe,
    merge_options,
    read_options,
    read_recipe,
    with_defaults,
    with_options,
)
from fairprune_framework.recipes.recipe import EXECUTION_OPTIONS, FIELDS, Recipe
from fairprune_framework.runs.folder import RECIPE, RECORD, is_begun
from fairprune_framework.runs.run import Run
from fairprune_framework.utilities.files import refuse_part_of_run, refuse_unwritable
from fairprune_framework.utilities.progress import Notify, silent


def open_run(
    output: str | Path | None,
    options: Mapping[str, Any],
    *,
    recipe: Recipe | str | None = None,
    overwrite: bool = False,
    fresh: bool = False,
    model: Any = None,
    tokenizer: Any = None,
    prompts: Any = None,
    notify: Notify = silent,
) -> Run:
    """Open a run folder, new or existing; nothing is written yet.

    Args:
        output: the folder; None: a temporary one that lives as long as the `Run`.
        options: fields of the recipe, as on the command line. In an existing folder they are laid over its `recipe.yaml`.
        recipe: a `Recipe`, or the name or file of one; in an existing folder a named one is laid over its `recipe.yaml`.
        fresh: do not start from the `recipe.yaml` of an existing folder.
        model: a name, or a model in memory with its `tokenizer`.
        prompts: a name or file, or contrasts in memory.

    Raises:
        RunFolderError: the folder holds something that is no run, or a run with another recipe that was named.
        UserError: as the recipe's own checks.
    """
    if output == "":
        raise UserError("--output must name a folder. Got '' instead.")
    folder = None if output is None else Path(output)
    given = dict(options)
    in_memory_model = model if model is not None and not isinstance(model, (str, Path)) else None
    in_memory_prompts = prompts if prompts is not None and not isinstance(prompts, (str, Path)) else None
    if isinstance(model, (str, Path)):
        given["model"] = str(model)
    if isinstance(prompts, (str, Path)):
        given["prompts"] = str(prompts)
    existing = folder is not None and os.path.exists(folder) and not is_begun(folder)
    if folder is not None and existing and not (folder.is_dir() and (folder / RECORD).is_file()):
        raise RunFolderError(f"{folder} exists and is not a run folder (it contains no {RECORD}): choose another --output")
    if folder is not None and not existing:
        refuse_part_of_run(folder)
        refuse_unwritable(folder)
    anew: Collection[str] = FIELDS
    if isinstance(recipe, Recipe):
        resolved = with_options(with_defaults(recipe), given) if given else with_defaults(recipe)
    elif existing and folder is not None and not fresh:
        kept = {name: value for name, value in read_options(folder / RECIPE).items() if name not in EXECUTION_OPTIONS}
        more = {} if recipe is None else read_recipe(recipe)
        known, anew = merge_options(kept, more), {*more, *given}
        resolved = with_defaults(with_options(known, given, f"{folder / RECIPE}"))
    else:
        resolved = with_defaults(load_recipe(recipe, given))
    in_memory = {"model": in_memory_model, "prompts": in_memory_prompts}
    anew = {*anew, *(name for name, value in in_memory.items() if value is not None)}
    loaded = (
        None if in_memory_model is None else LoadedModel(resolved, model=in_memory_model, tokenizer=tokenizer, notify=notify)
    )
    return Run(resolved, folder, overwrite=overwrite, loaded=loaded, contrasts=in_memory_prompts, given=anew, notify=notify)


def open_existing(folder: str | Path, options: Mapping[str, Any] | None = None, *, notify: Notify = silent) -> Run:
    """Open a run folder that must be there.

    Raises:
        RunFolderError: there is none.
        UserError: as `open_run`.
    """
    path = Path(folder)
    if not os.path.isdir(path):  # False also for a name that no file can have
        raise RunFolderError(f"there is no run folder {shortened(str(path))}")
    if not (path / RECORD).is_file():
        raise RunFolderError(f"{path} is not a run folder (it contains no {RECORD})")
    return open_run(path, options or {}, notify=notify)
