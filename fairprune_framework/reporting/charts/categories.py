"""Between categories: do they select the same neurons, and does a selection for one help another?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fairprune_framework.reporting.charts.chart import DIVERGING, Chart, Table, axis, interval, number, percent, plain
from fairprune_framework.reporting.run_data import Source


def overlap(source: Source) -> Chart | None:
    """Jaccard indices of the neurons selected for each category alone. None without `overlap.json`."""
    answer = source.more.get("overlap")
    if not answer:
        return None
    names = [plain(name, 30) for name in answer["categories"]]
    values = answer["jaccard"]
    adjusted = answer.get("p_adjusted")
    rows = [
        [a, b, number(_cell(answer.get("counts"), i, j)), number(values[i][j]), number(_cell(adjusted, i, j), 2)]
        for i, a in enumerate(answer["categories"])
        for j, b in enumerate(answer["categories"])
        if j < i
    ]
    return _matrix(
        name="overlap",
        title="Neurons shared by categories",
        caption="Neurons selected for each category alone; the number is the Jaccard index of two categories (1: the same neurons, "
        "0: none in common). Shared neurons may be one mechanism for several categories.",
        labels=(names, names),
        axes=("category", "category"),
        values=values,
        text=[[f"{value:.2f}" for value in row] for row in values],
        colors={"colorscale": "Cividis", "zmin": 0, "zmax": 1},
        bar="Jaccard",
        table=Table(
            columns=("category", "category", "shared", "Jaccard", "p, adjusted"),
            rows=rows,
            note="p: against chance, hypergeometric.",
        ),
    )


def transfer(source: Source) -> Chart | None:
    """Change of the divergence of each category by the selection for another one. None without `transfer.json`."""
    answer = source.more.get("transfer")
    if not answer:
        return None
    chosen = [plain(name, 30) for name in answer["categories"]]
    judged = answer.get("judged") or answer["categories"]
    values = answer["change"]
    known = [value for row in values for value in row if value is not None]
    most = max((abs(value) for value in known), default=1.0)
    rows = []
    for i, a in enumerate(answer["categories"]):
        for j, b in enumerate(judged):
            bounds = {"ci_low": _cell(answer.get("ci_low"), i, j), "ci_high": _cell(answer.get("ci_high"), i, j)}
            rows.append([a, b, percent(values[i][j]), interval(bounds)])
    return _matrix(
        name="transfer",
        title="Selected for one category, judged on another",
        caption="Each row removes neurons selected for one category alone; each column is the change of the held-out divergence of a "
        "category. Blue is less divergence. An effect on the diagonal only does not transfer.",
        labels=(chosen, [plain(name, 30) for name in judged]),
        axes=("selected for", "judged on"),
        values=values,
        text=[[percent(value, 0) for value in row] for row in values],
        colors={"colorscale": DIVERGING, "zmin": -most, "zmax": most},
        bar="change",
        table=Table(columns=("selected for", "judged on", "change", "95 % interval"), rows=rows),
    )


def _cell(matrix: Sequence[Sequence[Any]] | None, row: int, column: int) -> Any:
    return None if matrix is None else matrix[row][column]


def _matrix(
    *,
    name: str,
    title: str,
    caption: str,
    labels: tuple[Sequence[str], Sequence[str]],
    axes: tuple[str, str],
    values: Sequence[Sequence[float]],
    text: Sequence[Sequence[str]],
    colors: Mapping[str, Any],
    bar: str,
    table: Table,
) -> Chart:
    return Chart(
        name=name,
        title=title,
        caption=caption,
        summary=f"A matrix of {len(labels[0])} by {len(labels[1])} categories; the table below lists every number.",
        data=[
            {
                "type": "heatmap",
                "z": values,
                "x": labels[1],
                "y": labels[0],
                "text": text,
                "texttemplate": "%{text}",
                **colors,
                "colorbar": {"title": {"text": bar}, "thickness": 14, "outlinewidth": 0},
                "hovertemplate": f"{axes[0]} %{{y}}, {axes[1]} %{{x}}: %{{text}}<extra></extra>",
                "xgap": 2,
                "ygap": 2,
            }
        ],
        layout={
            "xaxis": axis(axes[1], type="category", showgrid=False),
            "yaxis": axis(axes[0], type="category", showgrid=False, autorange="reversed"),
        },
        table=table,
        height=200 + 42 * len(labels[0]),
    )
