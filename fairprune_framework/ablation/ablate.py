"""Evaluate every cell of a grid: in one process, in parts, or over ranks launched together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from fairprune_framework.ablation.grid import read_grid
from fairprune_framework.ablation.heldout import confirm_best, refuse_second_look
from fairprune_framework.ablation.search import Ablation
from fairprune_framework.auditing.demand import Demand
from fairprune_framework.auditing.distributed import parallel
from fairprune_framework.errors import UserError
from fairprune_framework.evaluation.masked_evaluator import measurable
from fairprune_framework.evaluation.metrics.names import IDEALS
from fairprune_framework.recipes.loading import with_options
from fairprune_framework.stages.plan import check as check_layers
from fairprune_framework.utilities import lock
from fairprune_framework.utilities.progress import Notify, silent


def ablate(
    grid: str | Path | Mapping[str, Any],
    output: str | Path,
    *,
    confirm: int = 0,
    part: tuple[int, int] | None = None,
    overwrite: bool = False,
    model: Any = None,
    tokenizer: Any = None,
    prompts: Any = None,
    notify: Notify = silent,
    **options: Any,
) -> dict[str, Any] | None:
    """Evaluate every cell of a grid; returns the content of `ablation.json`, or None while cells of other parts are missing.

    Args:
        grid: a YAML file, or a mapping.
        output: the folder; the same grid in the same folder resumes, an extended one runs its new cells.
        confirm: repeat this number of the best cells and judge them on held-out contrasts, once.
        part: (i, n): run cell i, i + n, ...; n processes share the work of one folder. By default all cells; under torchrun or
            SLURM each rank runs its own cells, and rank 0 waits for all and writes the table.
        model, prompts: names, or in memory (with `tokenizer`).
        options: fields of the recipe, the same for all cells.

    Raises:
        UserError: the grid is invalid, and nothing was written; or held-out contrasts were looked at before.
    """
    if part is not None and not 0 <= part[0] < part[1]:
        raise UserError(f"--part must be I/N with 0 <= I < N. Got {part[0]}/{part[1]} instead.")
    if confirm < 0:
        raise UserError(f"--confirm must be a number of cells. Got {confirm} instead.")
    in_memory = {"model": model, "prompts": prompts}
    named = {name: str(value) for name, value in in_memory.items() if isinstance(value, (str, Path))}
    read = read_grid(grid, {**options, **named})
    given: dict[str, Any] = {name: None if name in named else value for name, value in in_memory.items()}
    written = dict(grid) if isinstance(grid, Mapping) else None
    text = yaml.safe_dump(written, sort_keys=False) if written else Path(str(grid)).read_text(encoding="utf-8")

    def opened(**more: Any) -> Ablation:
        return Ablation(read, Path(output), **given, tokenizer=tokenizer, **more)

    def prepared() -> Ablation:
        ablation = opened(overwrite=overwrite, notify=notify)
        if confirm:
            refuse_second_look(ablation, confirm)
        if ablation.left():
            check(ablation)
        ablation.begin(text, shared=part is not None)
        return ablation

    rank, ranks = parallel.launched_ranks() if part is None else (0, 1)
    try:
        if ranks > 1:
            done = _together(parallel.Parallelism(devices=ranks), (rank, ranks), prepared, opened)
        else:
            done = prepared()
            done.run_cells(part or (0, 1))
        if done is None:
            return None
        record = done.assemble()
        if confirm and record is not None:
            confirm_best(done, confirm)
    finally:
        lock.release(Path(output))
    return done.record if record is not None else None


def _together(
    parallelism: parallel.Parallelism, part: tuple[int, int], prepared: Callable[[], Ablation], opened: Callable[[], Ablation]
) -> Ablation | None:
    """The cells over ranks launched together: rank 0 checks, audits, broadcasts the start, and waits for the others."""
    parallel.init_process_group(parallelism)
    try:
        if part[0]:
            if parallel.broadcast(parallelism, None) == "cells":
                opened().run_cells(part)
                parallel.barrier(parallelism)
            return None
        told = "leave"
        try:
            ablation = prepared()
            if ablation.left():
                ablation.audit()
            told = "cells"
        finally:
            parallel.broadcast(parallelism, told)
        ablation.run_cells(part)
        parallel.barrier(parallelism)
        return ablation
    finally:
        parallel.destroy_process_group(parallelism)


def check(ablation: Ablation) -> None:
    """Validate model, prompts and plugins before anything is written."""
    base = ablation.base_run()
    base.with_recipe(with_options(base.recipe, ablation.grid.cells[0].choices)).plugins.check_names()
    _ = base.prompts.contrasts, base.fingerprint, base.prompts.aligned
    check_layers(base)
    Demand.of(ablation.grid.plugins, len(base.loaded.layers))
    selecting = (one for one in base.prompts.aligned if one.split in (None, "select"))
    judge = ablation.grid.judge
    if IDEALS[judge] == 0.5 and not any(measurable(judge, one) for one in selecting):
        raise UserError(f"judge: {judge} needs contrasts that name a stereotype and can be scored, and select has none")
