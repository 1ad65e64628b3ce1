"""Comparison of several runs: differences of their recipes, their numbers in one table, and obstacles to a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fairprune_framework.evaluation.metrics.names import DIVERGENCE
from fairprune_framework.reporting.charts.chart import (
    BLUE,
    CONTROL,
    LEGEND_ABOVE,
    Chart,
    Table,
    axis,
    basis,
    beyond,
    edges,
    error_bars,
    interval,
    number,
    percent,
    plain,
)
from fairprune_framework.reporting.run_data import Source


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Content of the page for several runs."""

    names: Sequence[str]
    """One short name per run, all different."""
    cautions: Sequence[str]
    """Obstacles to a comparison of the numbers."""
    recipes: Table
    """The fields with different values."""
    results: Table
    charts: Sequence[Chart]


def compare(sources: Sequence[Source]) -> Comparison:
    """Compare the other runs with the first."""
    names = _names(sources)
    return Comparison(
        names=names,
        cautions=cautions(sources, names),
        recipes=_recipes(sources, names),
        results=_results(sources, names),
        charts=[chart for chart in (_chart(sources, names),) if chart is not None],
    )


def _names(sources: Sequence[Source]) -> list[str]:
    """The names of the folders, or their paths where two names are equal."""
    short = [source.name for source in sources]
    return [name if short.count(name) == 1 else str(source.folder) for name, source in zip(short, sources, strict=True)]


def cautions(sources: Sequence[Source], names: Sequence[str]) -> list[str]:
    """Reasons why the numbers of these runs are not comparable."""
    reasons = []
    for what, values in (
        ("models", [source.fingerprint or source.model for source in sources]),
        ("prompt sets", [source.record.get("hashes", {}).get("prompts") for source in sources]),
        ("splits", [source.record.get("hashes", {}).get("split") for source in sources]),
        ("calibration texts", [source.record.get("hashes", {}).get("calibration") for source in sources]),
    ):
        known = [value for value in values if value is not None]
        if len(set(known)) > 1:
            shown = [source.model for source in sources] if what == "models" else known
            of = ", ".join(f"{name}: {str(value)[:24]}" for name, value in zip(names, shown, strict=False))
            consequence = {
                "models": "interpret each change within its own run only; the values before differ",
                "prompt sets": "the changes answer different questions",
                "splits": "the held-out contrasts differ, so one run may be judged on contrasts that another selected on",
                "calibration texts": "perplexities refer to different texts",
            }[what]
            reasons.append(f"These runs have different {what} ({of}): {consequence}.")
    for source, name in zip(sources, names, strict=True):
        if not source.rows and source.ablation is None:
            reasons.append(f"{name} has not been evaluated: run `fairprune evaluate --output {source.folder}`.")
    return reasons


def _recipes(sources: Sequence[Source], names: Sequence[str]) -> Table:
    fields = list(dict.fromkeys(field for source in sources for field in source.recipe))
    rows = []
    for field in fields:
        values = [source.recipe.get(field) for source in sources]
        if any(value != values[0] for value in values):
            rows.append([field, *("–" if value is None else str(value) for value in values)])
    return Table(columns=("option", *names), rows=rows, note="" if rows else "The recipes are equal.")


def _results(sources: Sequence[Source], names: Sequence[str]) -> Table:
    keys = list(
        dict.fromkeys(
            _key(row) for source in sources for row in source.rows if row["layer"] is None and row["category"] is None
        )
    )
    rows = [["verdict", *(str(source.record.get("verdict", "–")) for source in sources)]]
    rows.append(["neurons planned", *(_planned(source) for source in sources)])
    for key in keys:
        rows_of_key = [
            next((row for row in source.rows if _key(row) == key and row["layer"] is None and row["category"] is None), None)
            for source in sources
        ]
        rows.append([_words(key), *(_cell(row) for row in rows_of_key)])
    return Table(
        columns=("", *names),
        rows=rows,
        note="Change from before to after with its 95 % interval; without a change, the value.",
    )


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return (row["metric"], row["split"], row["control"])


def _words(key: tuple[Any, ...]) -> str:
    metric, split, control = key
    return ", ".join(str(part) for part in (metric, "controls" if control else None, split) if part)


def _planned(source: Source) -> str:
    return "–" if source.plan is None else f"{sum(len(units) for units in source.plan['sites'].values()):,}"


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "–"
    if row["change"] is None:
        return number(row["before"] if row["after"] is None else row["after"])
    text = percent(row["change"]) + (f" ({interval(row)})" if row.get("ci_low") is not None else "")
    return f"{text} {basis(row)}".rstrip()


def _chart(sources: Sequence[Source], names: Sequence[str]) -> Chart | None:
    """Change of the judged divergence of each run, beside its controls."""
    data, rows = [], []
    pairs = [
        (control, name, row)
        for control in (False, True)
        for name, source in zip(names, sources, strict=True)
        if (row := source.find(DIVERGENCE, split=source.judged_split, control=control)) is not None
        and row["change"] is not None
    ]
    within = edges([row for _, _, row in pairs])
    for control, color, symbol in ((False, BLUE, "circle"), (True, CONTROL, "diamond")):
        known = [(name, row) for other, name, row in pairs if other is control]
        if not known:
            continue
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "controls" if control else "judged contrasts",
                "x": [row["change"] for _, row in known],
                "y": [plain(name, 40) for name, _ in known],
                "error_x": error_bars([row for _, row in known], within, color=color),
                "marker": {"color": color, "size": 10, "symbol": symbol},
                "hovertemplate": "%{y}: %{x:+.1%}<extra>%{fullData.name}</extra>",
            }
        )
        rows += [[name, "controls" if control else "judged", percent(row["change"]), interval(row)] for name, row in known]
    if not data:
        return None
    data += beyond([row for _, _, row in pairs], [plain(name, 40) for _, name, _ in pairs], within)
    return Chart(
        name="change-by-run",
        title="Change of next-token divergence, run by run",
        caption="Each point is one run with its 95 % interval; its controls are grey. Overlapping intervals are no test of a "
        "difference between two runs: each interval is about its own run.",
        summary=f"{len(sources)} runs; the table below lists every number.",
        data=data,
        layout={
            "xaxis": axis("relative change", tickformat="+.0%", zeroline=True, zerolinewidth=2),
            "yaxis": axis("", type="category", autorange="reversed"),
            "showlegend": True,
            "legend": LEGEND_ABOVE,
        },
        table=Table(columns=("run", "contrasts", "change", "95 % interval"), rows=rows),
        height=150 + 44 * len(sources),
    )
