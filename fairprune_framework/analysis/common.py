"""Shared by the questions: opening a run, plans by category, masked divergences, tables as text."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from shutil import get_terminal_size
from typing import Any

import numpy as np
import torch

from fairprune_framework.api.types import Plan, Scores
from fairprune_framework.evaluation.masked_evaluator import MaskedEvaluator
from fairprune_framework.runs.open import open_existing
from fairprune_framework.runs.run import Run
from fairprune_framework.selection.decide import plan_of
from fairprune_framework.utilities.progress import Notify


def opened_run(run: Run | str | Path, notify: Notify, stage: str) -> Run:
    opened = run if isinstance(run, Run) else open_existing(run, notify=notify)
    opened.folder.needs(stage)
    return opened


def chosen_by_category(run: Run) -> dict[str, Plan]:
    """category -> the choice of the run's policy by the bias of that category alone."""
    scores = run.read_scores()
    return {category: plan_of(run.selection, narrowed(scores, category)) for category in sorted(scores.by_category)}


def narrowed(scores: Scores, category: str) -> Scores:
    """Scores with the bias of one category instead of the average; the units of sites that it never reached are not observed."""
    own = scores.by_category[category]
    bias = {name: own.get(name, torch.zeros_like(mean)) for name, mean in scores.bias.items()}
    observed = {name: seen & (name in own) for name, seen in scores.observed.items()}
    return replace(scores, bias=bias, observed=observed)


def as_set(plan: Plan) -> set[tuple[str, int]]:
    return {(name, unit) for name, units in plan.sites.items() for unit in units}


def ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def square(size: int, pairs: Sequence[tuple[int, int]], values: Sequence[float]) -> list[list[float | None]]:
    """A symmetric matrix with None on its diagonal."""
    matrix_of_pairs: list[list[float | None]] = [[None] * size for _ in range(size)]
    for (i, j), value in zip(pairs, values, strict=True):
        matrix_of_pairs[i][j] = matrix_of_pairs[j][i] = value
    return matrix_of_pairs


def top_units(scores: Scores, count: int) -> list[dict[str, Any]]:
    """The neurons of the highest bias that were observed: site, unit, score."""
    names = sorted(scores.bias)
    every = torch.cat([scores.bias[name].masked_fill(~scores.observed[name], -torch.inf) for name in names])
    units = [(name, unit) for name in names for unit in range(scores.sites[name].units)]
    first = torch.sort(every, descending=True, stable=True).indices[:count].tolist()
    return [{"site": units[i][0], "unit": units[i][1], "score": every[i].item()} for i in first if torch.isfinite(every[i])]


def rank_correlations(scores: Sequence[Scores]) -> list[list[float | None]]:
    """Spearman's, over the units that were observed by all; None on the diagonal, and where a scorer gives all the same."""
    from scipy.stats import rankdata

    names = sorted(scores[0].bias)
    seen = torch.cat([torch.stack([each.observed[name] for each in scores]).all(0) for name in names])
    ranks = [rankdata(torch.cat([each.bias[name] for name in names])[seen].numpy()) for each in scores]
    pairs = [(i, j) for i in range(len(ranks)) for j in range(i)]
    flat = [bool(np.ptp(rank) == 0) if len(rank) else True for rank in ranks]
    values = [float("nan") if flat[i] or flat[j] else float(np.corrcoef(ranks[i], ranks[j])[0, 1]) for i, j in pairs]
    return [[None if value is None or np.isnan(value) else value for value in row] for row in square(len(ranks), pairs, values)]


def divergence_evaluator(run: Run) -> tuple[str, MaskedEvaluator]:
    """The judging split (`heldout` if present, otherwise `select`), and an evaluator for the divergence of its contrasts."""
    splits = {contrast.split for contrast in run.prompts.aligned}
    split = "heldout" if "heldout" in splits else "select"
    evaluator = MaskedEvaluator(
        run.loaded.model,
        run.loaded.architecture,
        [contrast for contrast in run.prompts.aligned if contrast.split in (None, split)],
        run.prompts.values,
        max_tokens=run.micro_batch_tokens,
        sentences=run.prompts.sentences,
        seed=run.recipe.seed,
    )
    return split, evaluator


def wrapped(line: str) -> list[str]:
    """A line as several that fit the terminal, further ones indented by two more blanks; words stay whole."""
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.wrap(
        line, get_terminal_size().columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def matrix(rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """A table as lines; columns that the terminal has no room for follow below, beside the names of the rows again."""
    first = max(map(len, rows), default=0)
    widths = [max(len(name), *(len(row[j]) for row in cells)) if cells else len(name) for j, name in enumerate(columns)]
    blocks: list[list[int]] = [[]]
    taken, room = first, get_terminal_size().columns
    for column, width in enumerate(widths):
        if blocks[-1] and taken + 2 + width > room:
            blocks.append([])
            taken = first
        blocks[-1].append(column)
        taken += 2 + width
    lines: list[str] = []
    for block in blocks:
        lines += [""] if lines else []
        for name, row in (("", columns), *zip(rows, cells, strict=True)):
            lines.append("  ".join([name.ljust(first), *(row[column].rjust(widths[column]) for column in block)]))
    return lines
