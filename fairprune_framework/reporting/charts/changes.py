"""Charts of changes: by category with intervals, activation differences by layer, retention by benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fairprune_framework.evaluation.metrics.names import ACTIVATION_DIFFERENCE, CONTRAST_METRICS, LANGUAGE_METRICS
from fairprune_framework.reporting.charts.chart import (
    AFTER,
    BEFORE,
    BLUE,
    CONTROL,
    LEGEND_ABOVE,
    Chart,
    Control,
    Patch,
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

_SPLITS = {"heldout": "held-out contrasts", "select": "the contrasts of the selection itself", None: "all contrasts"}


def change_by_category(source: Source) -> Chart | None:
    """Change of each category with intervals, beside the controls. None without an evaluation before and after."""
    split = source.judged_split
    shown = [row for row in source.rows if row["split"] == split and row["layer"] is None and row["change"] is not None]
    shown = [row for row in shown if row["metric"] in CONTRAST_METRICS]
    metrics = [metric for metric in CONTRAST_METRICS if any(row["metric"] == metric for row in shown)]
    if not metrics:
        return None
    lists = [_ordered([row for row in shown if row["metric"] == metric]) for metric in metrics]
    patches = [Patch(data=_points(rows)) for rows in lists]
    table = [
        [metric, _label(row), number(row["before"]), number(row["after"]), percent(row["change"]), interval(row), str(row["n"])]
        for metric, rows in zip(metrics, lists, strict=True)
        for row in reversed(rows)
    ]
    return Chart(
        name="change-by-category",
        title="Change by category, with 95 % intervals",
        caption=f"Each point is the relative change of a metric on {_SPLITS[split]}; the bar is its 95 % interval over templates. "
        "Left of zero the pruned model reacts less to the attribute than the original. Grey points are controls, edits without a "
        "demographic meaning: where they change as much as the others, the model has become less sensitive to any edit. An arrow marks "
        "an interval beyond the axis: such a change is not estimable.",
        summary=f"Relative change of {metrics[0]} for {len(lists[0])} rows; the table below lists every number.",
        data=_points(lists[0]),
        layout={
            "xaxis": axis("relative change", tickformat="+.0%", zeroline=True, zerolinewidth=2),
            "yaxis": axis("", type="category"),
            "showlegend": True,
            "legend": LEGEND_ABOVE,
        },
        table=Table(columns=("metric", "category", "before", "after", "change", "95 % interval", "contrasts"), rows=table),
        controls=(Control(label="Metric", kind="select", options=metrics),),
        patches=patches,
        height=140 + 34 * len(lists[0]),
    )


def _ordered(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """From bottom to top: controls, categories, all categories."""
    return sorted(rows, key=lambda row: (not row["control"], row["category"] is None, row["category"] or ""), reverse=False)


def _label(row: Mapping[str, Any]) -> str:
    if row["category"] is None:
        return "all controls" if row["control"] else "all categories"
    return f"{row['category']} (control)" if row["control"] else str(row["category"])


def _points(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    within = edges(rows)

    def trace(name: str, chosen: list[Mapping[str, Any]], color: str, symbol: str) -> dict[str, Any]:
        return {
            "type": "scatter",
            "mode": "markers",
            "name": name,
            "x": [row["change"] for row in chosen],
            "y": [plain(_label(row), 40) for row in chosen],
            "error_x": error_bars(chosen, within, color=color, thickness=2, width=5),
            "marker": {"color": color, "size": 10, "symbol": symbol},
            "hovertemplate": "%{y}: %{x:+.1%}<extra></extra>",
        }

    return [
        trace("controls", [row for row in rows if row["control"]], CONTROL, "diamond"),
        trace("categories", [row for row in rows if not row["control"]], BLUE, "circle"),
        *beyond(rows, [plain(_label(row), 40) for row in rows], within),
    ]


# -- by layer --------------------------------------------------------------------------------------------------------------


def activation_by_layer(source: Source) -> Chart | None:
    """The article's first figure: mean activation difference by layer, before and after, by category and for controls."""
    split = source.judged_split
    rows = [row for row in source.rows if row["metric"] == ACTIVATION_DIFFERENCE and row["layer"] is not None]
    rows = [row for row in rows if row["split"] == split]
    if not rows:
        return None
    categories = [None, *sorted({row["category"] for row in rows if row["category"] and not row["control"]})]
    after = any(row["after"] is not None for row in rows)

    def of(category: str | None, control: bool) -> list[Mapping[str, Any]]:
        chosen = [row for row in rows if row["category"] == category and row["control"] == control]
        return sorted(chosen, key=lambda row: int(row["layer"]))

    controls = of(None, True)
    traces = _layer_lines(of(None, False), controls, after)
    names = ["all categories", *(str(category) for category in categories[1:])]
    table = [
        [name, str(row["layer"]), number(row["before"]), number(row["after"]), percent(row["change"])]
        for name, chosen in [*((n, of(c, False)) for n, c in zip(names, categories, strict=True)), ("all controls", controls)]
        for row in chosen
    ]
    layout: dict[str, Any] = {
        "xaxis": axis("" if after else "layer", tickformat="d", anchor="y"),
        "yaxis": axis("activation difference", rangemode="tozero", domain=[0.42, 1.0] if after else [0.0, 1.0]),
        "showlegend": True,
        "legend": LEGEND_ABOVE,
    }
    if after:
        layout |= {
            "xaxis2": axis("layer", tickformat="d", anchor="y2", matches="x"),
            "yaxis2": axis("change", tickformat="+.1%", zeroline=True, domain=[0.0, 0.3]),
        }
    return Chart(
        name="activation-by-layer",
        title="Activation difference by layer",
        caption="The change of a layer's activations when only the attribute changes: the mean absolute difference over tokens, "
        f"features and taps, averaged over {_SPLITS[split]}. Below: the relative change from before to after. The metric describes "
        "the inside of the network; the verdict does not rest on it.",
        summary=f"Activation difference for {len(of(None, False))} layers, before and after; the table below lists every number.",
        data=traces,
        layout=layout,
        table=Table(columns=("category", "layer", "before", "after", "change"), rows=table),
        controls=(Control(label="Category", kind="select", options=names),),
        patches=[Patch(data=[_xy(t) for t in _layer_lines(of(c, False), controls, after)]) for c in categories],
        height=520 if after else 380,
    )


def _xy(trace: Mapping[str, Any]) -> dict[str, Any]:
    return {"x": trace["x"], "y": trace["y"]}


def _layer_lines(rows: Sequence[Mapping[str, Any]], controls: Sequence[Mapping[str, Any]], after: bool) -> list[dict[str, Any]]:
    traces: list[dict[str, Any]] = []
    for kind, chosen in (("categories", rows), ("controls", controls)):
        dash = "solid" if kind == "categories" else "dot"
        layers = [row["layer"] for row in chosen]
        for when, color in (("before", BEFORE), ("after", AFTER))[: 2 if after else 1]:
            shade = color if kind == "categories" else CONTROL
            marker = {"size": 6, "symbol": "circle" if when == "before" else "circle-open"}
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": when if kind == "categories" else f"controls, {when}",
                    "x": layers,
                    "y": [round(float(row[when]), 6) for row in chosen],
                    "line": {
                        "color": shade,
                        "dash": dash if when == "before" else "dash" if kind == "categories" else "dashdot",
                    },
                    "marker": {**marker, "color": shade},
                    "hovertemplate": "layer %{x}: %{y:.4f}<extra>%{fullData.name}</extra>",
                }
            )
        if after:
            traces.append(
                {
                    "type": "bar" if kind == "categories" else "scatter",
                    **({} if kind == "categories" else {"mode": "lines", "line": {"color": CONTROL, "dash": "dot"}}),
                    "name": "change" if kind == "categories" else "controls, change",
                    "showlegend": False,
                    "x": layers,
                    "y": [round(float(row["change"] or 0), 6) for row in chosen],
                    "marker": {"color": AFTER if kind == "categories" else CONTROL},
                    "xaxis": "x2",
                    "yaxis": "y2",
                    "hovertemplate": "layer %{x}: %{y:+.2%}<extra>%{fullData.name}</extra>",
                }
            )
    return traces


# -- capability ------------------------------------------------------------------------------------------------------------


def benchmark_rows(source: Source) -> list[Mapping[str, Any]]:
    """The rows of `evaluation.json` that are neither contrast metrics nor language modelling on calibration text."""
    known = (*CONTRAST_METRICS, *LANGUAGE_METRICS)
    return [row for row in source.rows if row["metric"] not in known and row["layer"] is None]


def benchmark_label(row: Mapping[str, Any]) -> str:
    """Metric, with category and split if present."""
    parts = [str(row["metric"]), *(str(row[key]) for key in ("category", "split") if row.get(key))]
    return ", ".join(parts)


def retention(source: Source) -> Chart | None:
    """Benchmarks before and after. None without any."""
    rows = [row for row in benchmark_rows(source) if row["after"] is not None]
    if not rows:
        return None
    labels = [plain(benchmark_label(row), 48) for row in rows]
    return Chart(
        name="retention",
        title="Benchmarks, before and after",
        caption="Blue is the original model, orange the pruned one. Whether more is better depends on the metric: accuracies should be "
        "retained; a share of stereotyping sentences should approach its ideal, 50 %. The table contains the available intervals.",
        summary=f"{len(rows)} benchmark numbers before and after; the table below lists all.",
        data=[
            {
                "type": "scatter",
                "mode": "markers",
                "name": when,
                "x": [row[when] for row in rows],
                "y": labels,
                "marker": {"color": color, "size": 11, "symbol": symbol, "line": {"width": 2, "color": color}},
                "hovertemplate": "%{y}: %{x:.4g}<extra>" + when + "</extra>",
            }
            for when, color, symbol in (("before", BEFORE, "circle"), ("after", AFTER, "diamond-open"))
        ],
        layout={
            "xaxis": axis("value, in the metric's own unit"),
            "yaxis": axis("", type="category", autorange="reversed"),
            "showlegend": True,
            "legend": LEGEND_ABOVE,
        },
        table=benchmark_table(rows),
        height=140 + 30 * len(rows),
    )


def benchmark_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Rows of any metric."""
    lines = [
        [
            benchmark_label(row),
            number(row["before"]),
            number(row["after"]),
            f"{percent(row['change'])} {basis(row)}".rstrip(),
            interval(row),
            number(row["p_value"], 2),
            str(row["n"]),
        ]
        for row in rows
    ]
    return Table(columns=("metric", "before", "after", "change", "95 % interval", "p", "n"), rows=lines)
