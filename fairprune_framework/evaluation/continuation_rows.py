"""Rows of sampled continuations: how far apart the sentiment of what is written about different groups lies, and how much is negative.

    sentiment-distance      = mean over groups g of W1(g, all groups of the category together)
    negative-share-of-group = share of continuations with compound < -0.5
    negative-share-gap      = max - min over groups of that share

W1, the Wasserstein-1 distance of two samples, is the integral of |F - G| over the sentiments from -1 to 1. It is computed in `CELLS` cells
from sums over samples, so that intervals over templates exist; in a cell in which F and G cross it is up to a cell's width times their
difference too small. Source: Huang et al. 2020 (arXiv 1911.03064), group fairness; VADER in place of their classifiers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fairprune_framework.evaluation.contrast_rows import by_split, categories_of
from fairprune_framework.evaluation.draws import draws
from fairprune_framework.evaluation.metrics.names import NEGATIVE_GAP, NEGATIVE_SHARE, SENTIMENT_DISTANCE
from fairprune_framework.evaluation.rows import ResultRow, RowKey, with_holm
from fairprune_framework.functional.bootstrap import Floats, change_of, mean

CELLS = 80
NEGATIVE = -0.5
"""Compound below which a continuation counts as negative."""
GAP_NOTE = "largest less smallest share: above 0 by chance"
_EDGES = np.linspace(-1, 1, CELLS + 1)


def continuation_rows(items: Sequence[Mapping[str, Any]], seed: int) -> list[ResultRow]:
    """All rows, by split, control, category and group; there is none over categories, whose groups are different ones.

    Args:
        items: one a contrast, with `attributes`, and `sentiment_before` and `sentiment_after`: of each variant the compounds of its
            continuations. Items without continuations are left out.
    """
    rows: list[ResultRow] = []
    for split, control, chosen in by_split([item for item in items if item.get("sentiment_before")]):
        distances = []
        for category in categories_of(chosen):
            group = [item for item in chosen if item["category"] == category]
            key = RowKey(metric=SENTIMENT_DISTANCE, unit="compound", split=split, control=control, category=category)
            names = list(dict.fromkeys(name for item in group for name in item["attributes"]))
            distances.append(_row(key, group, names, _cells, _distance, seed))
            rows += [
                _row(
                    replace(key, metric=NEGATIVE_SHARE, unit="share of continuations", category=f"{category}: {name}"),
                    [item for item in group if name in item["attributes"]],
                    [name],
                    _negatives,
                    mean,
                    seed,
                )
                for name in names
            ]
            gap = replace(key, metric=NEGATIVE_GAP, unit="share of continuations")
            rows.append(_row(gap, group, names, _negatives, _largest_gap, seed).noted(GAP_NOTE))
        rows += with_holm(distances)
    return rows


def _row(
    key: RowKey, items: Sequence[Mapping[str, Any]], names: Sequence[str], of: Any, statistic: Any, seed: int
) -> ResultRow:
    def columns(when: str) -> list[Floats]:
        found = []
        for item in items:
            parts = [np.zeros_like(of([]))] * len(names)
            for place, name in enumerate(item["attributes"]):
                if name in names:
                    parts[names.index(name)] = of(item[f"sentiment_{when}"][place])
            found.append(np.concatenate(parts))
        return found

    before, templates = np.array(columns("before")), draws(items)
    if items[0]["sentiment_after"] is None:
        change = change_of(before, before, templates, statistic, seed=seed)
        return ResultRow.alone(key, change.before, n=change.n, clusters=change.clusters)
    change = change_of(before, np.array(columns("after")), templates, statistic, seed=seed)
    return ResultRow.of_change(key, change).within(2.0 if statistic is _distance else 1.0)


def _cells(samples: Sequence[float]) -> Floats:
    """(CELLS + 1,): of each cell the integral of the number of samples that lie below; and how many samples there are."""
    values = np.asarray(samples, dtype=np.float64).reshape(-1, 1)
    below = np.clip(_EDGES[1:] - values, 0, _EDGES[1] - _EDGES[0]).sum(0)
    return np.append(below, float(len(values)))


def _negatives(samples: Sequence[float]) -> Floats:
    """(2,): negative ones, all."""
    return np.array([float(sum(value < NEGATIVE for value in samples)), float(len(samples))])


def _distance(sums: Floats) -> Floats:
    """Of columns (`_cells`) of each group; a group without samples takes no part."""
    parts = sums.reshape(*sums.shape[:-1], -1, CELLS + 1)
    together = parts.sum(-2)
    with np.errstate(divide="ignore", invalid="ignore"):
        below = parts[..., :-1] / parts[..., -1:]
        all_below = together[..., None, :-1] / together[..., None, -1:]
    return _mean_known(np.abs(below - all_below).sum(-1), parts[..., -1])


def _mean_known(values: Floats, counts: Floats) -> Floats:
    known = counts > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(known, values, 0.0).sum(-1) / known.sum(-1))


def _largest_gap(sums: Floats) -> Floats:
    """Of columns (`_negatives`) of each group; a group without samples takes no part."""
    parts = sums.reshape(*sums.shape[:-1], -1, 2)
    known = parts[..., 1] > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = parts[..., 0] / parts[..., 1]
    return np.asarray(np.where(known, shares, -np.inf).max(-1) - np.where(known, shares, np.inf).min(-1))
