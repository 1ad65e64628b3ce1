"""What the questions share: opening a run, plans by category, masked divergences, tables as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fairprune_framework.api.types import Plan, Scores
from fairprune_framework.auditing.batches import compose
from fairprune_framework.errors import UserError
from fairprune_framework.evaluation.compare import changed
from fairprune_framework.evaluation.metrics.contrasts import measure
from fairprune_framework.runs.open import open_run
from fairprune_framework.runs.run import Run
from fairprune_framework.selection.decide import plan_of
from fairprune_framework.surgery.masking import masked
from fairprune_framework.utilities.progress import Notify


def opened_run(run: Run | str | Path, notify: Notify, stage: str) -> Run:
    found = run if isinstance(run, Run) else open_run(_existing(run), {}, notify=notify)
    found.folder.needs(stage)
    return found


def _existing(folder: str | Path) -> Path:
    if not Path(folder).is_dir():
        raise UserError(f"there is no run folder {folder}")
    return Path(folder)


def chosen_by_category(run: Run) -> dict[str, Plan]:
    """category -> what the run's policy chooses by that category's bias alone."""
    scores = run.read_scores()
    return {category: plan_of(run.selection, narrowed(scores, category)) for category in sorted(scores.by_category)}


def narrowed(scores: Scores, category: str) -> Scores:
    """Scores with the bias of one category in place of the average; where it never reached a site, its units are not observed."""
    own = scores.by_category[category]
    bias = {name: own.get(name, torch.zeros_like(mean)) for name, mean in scores.bias.items()}
    observed = {name: seen & (name in own) for name, seen in scores.observed.items()}
    return replace(scores, bias=bias, observed=observed)


def as_set(plan: Plan) -> set[tuple[str, int]]:
    return {(name, unit) for name, units in plan.sites.items() for unit in units}


def ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def square(size: int, pairs: Sequence[tuple[int, int]], values: Sequence[float]) -> list[list[float | None]]:
    """A symmetric matrix with nothing on its diagonal."""
    found: list[list[float | None]] = [[None] * size for _ in range(size)]
    for (i, j), value in zip(pairs, values, strict=True):
        found[i][j] = found[j][i] = value
    return found


class MaskedDivergence:
    """Divergences of the contrasts that judge: held out where there are such, otherwise all."""

    def __init__(self, run: Run) -> None:
        self.run = run
        splits = {contrast.split for contrast in run.prompts.aligned}
        self.split = "heldout" if "heldout" in splits else "select"
        self.contrasts = [c for c in run.prompts.aligned if c.split in (None, self.split)]
        self._batches = list(compose(self.contrasts, run.prompts.values, run.micro_batch_tokens))
        self.before = self.measured({}, 0.0)

    def measured(self, units: Mapping[str, Sequence[int]], factor: float) -> dict[str, float]:
        with masked(self.run.loaded.model, self.run.loaded.architecture, units, factor):
            found = measure(self.run.loaded.model, self.run.loaded.architecture, self._batches, taps=frozenset())
        return {each.id: each.divergence for each in found}

    def change(self, after: Mapping[str, float], *, control: bool, category: str | None = None) -> Any:
        """Paired change with its interval; None where no contrast is of that kind."""
        chosen = [c for c in self.contrasts if c.control is control and category in (None, c.category)]
        return changed(chosen, self.before, after, self.run.recipe.seed) if chosen else None


def matrix(rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    first = max(map(len, rows), default=0)
    widths = [max(len(name), *(len(row[j]) for row in cells)) if cells else len(name) for j, name in enumerate(columns)]
    lines = [" " * first + "  " + "  ".join(name.rjust(width) for name, width in zip(columns, widths, strict=True))]
    for name, row in zip(rows, cells, strict=True):
        lines.append(name.ljust(first) + "  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    return lines
