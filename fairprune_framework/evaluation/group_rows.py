"""Rows by group: what the next word sounds like after each group, and whether the text about one group got worse than that about others.

A group is a value of a category's attribute; its rows are those of the category `gender: woman`. Everything comes from the forward of the
divergence.

    valence-of-group   = mean over templates of ( e[g] - mean over the variants u of e[u] ),  e the expected valence of the next word
    perplexity-of-group = exp( - sum of log p of the shared tokens / their number ) over the texts of g
    perplexity-gap     = max over groups of D[g] - mean over groups of D[g],  D[g] = log( perplexity after / before )

Shared tokens stand behind the first difference: the word for the group itself is not scored, what is said about the group is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fairprune_framework.evaluation.contrast_rows import LEGITIMATE, by_split, categories_of
from fairprune_framework.evaluation.draws import draws
from fairprune_framework.evaluation.metrics.names import GROUP_PERPLEXITY, GROUP_VALENCE, PERPLEXITY_GAP
from fairprune_framework.evaluation.metrics.perplexity import perplexity
from fairprune_framework.evaluation.rows import ResultRow, RowKey, with_holm
from fairprune_framework.functional.bootstrap import Floats, change_of, mean

GAP_NOTE = (
    "nats: log of perplexity after / before, of the group it rose most for less the mean of the groups; "
    "the largest of several is above 0 by chance"
)
Summands = list[tuple[list[float], list[float], str]]
"""(before, after, template) of each contrast that has the group."""


def group_rows(items: Sequence[Mapping[str, Any]], seed: int) -> list[ResultRow]:
    """All rows, by split, control and group.

    Args:
        items: one a contrast, with `attributes`, `valence_before`, `shared_tokens`, `shared_log_probabilities_before` and what is after.
    """
    rows: list[ResultRow] = []
    for split, control, group in by_split([item for item in items if item["role"] != LEGITIMATE]):
        for category in categories_of(group):
            chosen = [item for item in group if item["category"] == category]
            chosen = [{**item, "drawn_with": label} for item, label in zip(chosen, draws(chosen), strict=True)]
            key = RowKey(metric=GROUP_VALENCE, unit="valence", split=split, control=control, category=category)
            rows += _rows(key, chosen, seed)
    return rows


def _rows(key: RowKey, items: Sequence[Mapping[str, Any]], seed: int) -> list[ResultRow]:
    """Of one category."""
    names = list(dict.fromkeys(name for item in items for name in item["attributes"]))
    after = items[0]["shared_log_probabilities_after"] is not None

    def row(metric: str, unit: str, name: str, found: Summands) -> ResultRow:
        own = replace(key, metric=metric, unit=unit, category=f"{key.category}: {name}")
        first, second, templates = (list(values) for values in zip(*found, strict=True))
        change = change_of(first, second, templates, mean if metric == GROUP_VALENCE else perplexity, seed=seed)
        if not after:
            return ResultRow.alone(own, change.before, n=change.n, clusters=change.clusters)
        made = ResultRow.of_change(own, change)
        return replace(made, change=None, ci_low=None, ci_high=None) if metric == GROUP_VALENCE else made  # it has a sign

    valences = [(name, found) for name in names if (found := _valences(items, name))]
    rows = with_holm([row(GROUP_VALENCE, "valence", name, found) for name, found in valences])
    losses = [(name, found) for name in names if (found := _losses(items, name))]
    rows += [row(GROUP_PERPLEXITY, "perplexity per token", name, found) for name, found in losses]
    if after and len(losses) > 1:
        rows.append(_gap(replace(key, metric=PERPLEXITY_GAP, unit="nats"), items, [name for name, _ in losses], seed))
    return rows


def _valences(items: Sequence[Mapping[str, Any]], name: str) -> Summands:
    """(deviation, 1) of every contrast that has the group and valences."""

    def off(values: Sequence[float], place: int) -> list[float]:
        return [values[place] - sum(values) / len(values), 1.0]

    found: Summands = []
    for item in items:
        for place in _places(item, name):
            if item["valence_before"]:
                before = off(item["valence_before"], place)
                found.append(
                    (
                        before,
                        off(item["valence_after"], place) if item["valence_after"] else before,
                        item["drawn_with"],
                    )
                )
    return found


def _losses(items: Sequence[Mapping[str, Any]], name: str) -> Summands:
    """(nats, tokens) of every contrast that has the group and shared tokens behind the difference."""
    found: Summands = []
    for item in items:
        tokens, second = item["shared_tokens"], item["shared_log_probabilities_after"]
        for place in _places(item, name):
            if tokens:
                before = [-item["shared_log_probabilities_before"][place], float(tokens)]
                found.append(
                    (
                        before,
                        before if second is None else [-second[place], float(tokens)],
                        item["drawn_with"],
                    )
                )
    return found


def _places(item: Mapping[str, Any], name: str) -> list[int]:
    return [place for place, own in enumerate(item["attributes"]) if own == name]


def _gap(key: RowKey, items: Sequence[Mapping[str, Any]], names: Sequence[str], seed: int) -> ResultRow:
    """Columns: for each group nats before, nats after, tokens; before the change nothing has risen."""
    first, second, templates = [], [], []
    for item in items:
        if not item["shared_tokens"]:
            continue
        sums = np.zeros((len(names), 3))
        for place, name in enumerate(item["attributes"]):
            pair = [-item[f"shared_log_probabilities_{when}"][place] for when in ("before", "after")]
            sums[names.index(name)] += [*pair, item["shared_tokens"]]
        second.append(sums.ravel())
        first.append(sums[:, [0, 0, 2]].ravel())
        templates.append(item["drawn_with"])
    change = change_of(np.array(first), np.array(second), templates, _largest_rise, seed=seed)
    return ResultRow.of_change(key, change).noted(GAP_NOTE)


def _largest_rise(sums: Floats) -> Floats:
    """Of columns (nats before, nats after, tokens) of each group; a group without tokens takes no part."""
    parts = sums.reshape(*sums.shape[:-1], -1, 3)
    with np.errstate(divide="ignore", invalid="ignore"):
        rise = np.where(parts[..., 2] > 0, (parts[..., 1] - parts[..., 0]) / parts[..., 2], np.nan)
    with np.errstate(all="ignore"):
        return np.asarray(np.nanmax(rise, -1) - np.nanmean(rise, -1))
