"""The neurons: bias over layer and index, and bias against importance, with the planned ones marked."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairprune_framework.reporting.charts.chart import (
    DIVERGING,
    GREY,
    LEGEND_ABOVE,
    SEQUENTIAL,
    VERMILLION,
    Chart,
    Table,
    axis,
    number,
    plain,
)
from fairprune_framework.reporting.run_data import Source, layer_of, sites_of

MOST_CELLS = 60_000
"""Maximum number of cells of the heatmap; wider models are binned, each bin by its highest value."""
MOST_MARKS = 2_000
_BINS = 70


def scaled(values: NDArray[Any], unit: float) -> NDArray[np.float64]:
    """sign(x) log10(1 + |x| / unit): 0 stays 0, the unit becomes 0.3, ten units about 1; for values of either sign."""
    logarithms: NDArray[np.float64] = np.sign(values) * np.log10(1 + np.abs(values) / unit)
    return logarithms


def _unit(values: NDArray[Any]) -> float:
    """The median of the nonzero values."""
    magnitudes = np.abs(values[values != 0])
    return float(np.median(magnitudes)) if len(magnitudes) else 1.0


def layer_neuron_map(source: Source) -> Chart | None:
    """Heatmap of bias, one row per site. None without scores."""
    names = sites_of(source.scores)
    if not names:
        return None
    widest = max(len(source.scores[f"bias/{name}"]) for name in names)
    wide = max(1, -(-widest * len(names) // MOST_CELLS))
    bins = -(-widest // wide)
    raw = np.full((len(names), bins), np.nan, dtype=np.float64)
    for row, name in enumerate(names):
        bias = np.asarray(source.scores[f"bias/{name}"], dtype=np.float64)
        filled = np.full(bins * wide, -np.inf)
        filled[: len(bias)] = bias
        best = filled.reshape(bins, wide).max(1)
        raw[row] = np.where(np.isfinite(best), best, np.nan)
    signed = bool(np.nanmin(raw) < 0)
    unit = _unit(raw[np.isfinite(raw)])
    shades = scaled(raw, unit)
    labels = _row_labels(names)
    marks = _marks(source, names)
    top = float(np.nanmax(np.abs(shades)))
    pooled = "" if wide == 1 else f" Each cell is the maximum over {wide} neighbouring neurons."
    cut = f" Only the {MOST_MARKS:,} with the highest bias are marked." if len(marks) > MOST_MARKS else ""
    shown = marks[:MOST_MARKS]
    table = []
    for name, label in zip(names, labels, strict=True):
        bias = np.asarray(source.scores[f"bias/{name}"], dtype=np.float64)
        best = int(bias.argmax())
        table.append(
            [
                label,
                f"{len(bias):,}",
                f"{len(source.planned(name)):,}",
                number(float(np.median(bias))),
                number(float(bias[best])),
                str(best),
            ]
        )
    return Chart(
        name="layer-neuron-map",
        title="Bias of every neuron",
        caption="One row per layer, one column per neuron, from dark to light by the bias score on a logarithmic scale"
        + (", blue below and orange above zero" if signed else "")
        + f".{pooled} Circles are the planned neurons.{cut} "
        "Drag to zoom, double-click to reset, or use the buttons.",
        summary=f"Bias of {sum(len(source.scores[f'bias/{name}']) for name in names):,} neurons; the table below summarises each layer.",
        data=[
            {
                "type": "heatmap",
                "z": shades.astype(np.float32),
                "customdata": raw.astype(np.float32),
                "x0": (wide - 1) / 2,
                "dx": wide,
                "y": labels,
                "colorscale": DIVERGING if signed else SEQUENTIAL,
                **({"zmin": -top, "zmax": top} if signed else {}),
                "colorbar": _colorbar(raw, unit),
                "hovertemplate": "%{y}, neuron %{x:.0f}: bias %{customdata:.4g}<extra></extra>",
            },
            {
                "type": "scatter",
                "mode": "markers",
                "name": "planned",
                "x": [mark[2] for mark in shown],
                "y": [labels[mark[1]] for mark in shown],
                "marker": {"symbol": "circle-open", "size": 9, "color": VERMILLION, "line": {"width": 2, "color": VERMILLION}},
                "hovertemplate": "%{y}, neuron %{x}: planned<extra></extra>",
            },
        ],
        layout={
            "xaxis": axis("neuron", showgrid=False, range=[-0.5, widest - 0.5]),
            "yaxis": axis("", type="category", showgrid=False, nticks=12),
            "showlegend": False,
        },
        table=Table(columns=("layer", "neurons", "planned", "median bias", "highest bias", "neuron"), rows=table),
        zoom=True,
        height=max(360, min(760, 120 + 14 * len(names))),
    )


def _row_labels(names: list[str]) -> list[str]:
    """`layer 3`, or the name of the site if its layer has several."""
    layers = [layer_of(name) for name in names]
    return [
        f"layer {layer}" if layers.count(layer) == 1 else plain(name, 48) for name, layer in zip(names, layers, strict=True)
    ]


def _marks(source: Source, names: list[str]) -> list[tuple[float, int, int]]:
    """(-bias, row, unit) of the planned units, highest bias first."""
    marks = [
        (-float(source.scores[f"bias/{name}"][unit]), row, unit)
        for row, name in enumerate(names)
        for unit in source.planned(name)
        if unit < len(source.scores[f"bias/{name}"])
    ]
    return sorted(marks)


def _colorbar(raw: NDArray[Any], unit: float) -> dict[str, Any]:
    """Ticks at round values of the score."""
    return {"title": {"text": "bias"}, **_ticks(raw, unit), "thickness": 14, "outlinewidth": 0}


def _ticks(values: NDArray[Any], unit: float) -> dict[str, Any]:
    """Round values, well separated on the scale of `scaled`: 1, 2, 5 times powers of ten, about seven at most."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    most = max(abs(low), abs(high), unit)
    powers = range(int(np.floor(np.log10(unit))) - 1, int(np.ceil(np.log10(most))) + 1)
    round_ones = [step * 10.0**power for power in powers for step in (1, 2, 5)]
    span = float(scaled(np.array([high]), unit)[0] - scaled(np.array([low]), unit)[0]) or 1.0
    ticks = [0.0]
    for tick in round_ones:
        if tick <= most and float(scaled(np.array([tick]), unit)[0] - scaled(np.array([ticks[-1]]), unit)[0]) > span / 7:
            ticks.append(tick)
    if low < 0:
        ticks = [-tick for tick in reversed(ticks[1:])] + ticks
    ticks = [tick for tick in ticks if low <= tick <= high or tick == 0.0]
    return {
        "tickvals": [float(value) for value in scaled(np.array(ticks), unit)],
        "ticktext": [f"{tick:.0e}".replace("e-0", "e-").replace("e+0", "e") if _odd(tick) else f"{tick:g}" for tick in ticks],
    }


def _odd(value: float) -> bool:
    """Too large or too small for plain notation."""
    return value != 0 and not 1e-3 <= abs(value) < 1e5


def bias_against_importance(source: Source) -> Chart | None:
    """Scatter plot of the two scores: all neurons as a density, the planned ones as marks. None without scores."""
    names = sites_of(source.scores)
    if not names or f"importance/{names[0]}" not in source.scores:
        return None
    bias = np.concatenate([np.asarray(source.scores[f"bias/{name}"], dtype=np.float64) for name in names])
    importance = np.concatenate([np.asarray(source.scores[f"importance/{name}"], dtype=np.float64) for name in names])
    first = np.cumsum([0, *(len(source.scores[f"bias/{name}"]) for name in names)])
    units = (_unit(importance), _unit(bias))
    x, y = scaled(importance, units[0]), scaled(bias, units[1])
    counts, x_edges, y_edges = np.histogram2d(x, y, bins=_BINS)
    density = np.where(counts.T > 0, np.log10(np.maximum(counts.T, 1)), np.nan)
    marks = _marks(source, names)
    shown = marks[:MOST_MARKS]
    positions = np.array([first[row] + unit for _, row, unit in shown], dtype=int)
    labels = _row_labels(names)
    data: list[dict[str, Any]] = [
        {
            "type": "heatmap",
            "name": "all neurons",
            "z": density.astype(np.float32),
            "customdata": np.where(counts.T > 0, counts.T, np.nan).astype(np.float32),
            "x": _rounded((x_edges[1:] + x_edges[:-1]) / 2),
            "y": _rounded((y_edges[1:] + y_edges[:-1]) / 2),
            "colorscale": [[0, "#c9d3dc"], [1, "#33434f"]],
            "colorbar": {
                "title": {"text": "neurons"},
                "tickvals": [0, 1, 2, 3, 4, 5],
                "ticktext": ["1", "10", "100", "1,000", "10,000", "100,000"],
                "thickness": 14,
                "outlinewidth": 0,
            },
            "hovertemplate": "%{customdata:.0f} neurons<extra></extra>",
        },
        {
            "type": "scatter",
            "mode": "markers",
            "name": "planned",
            "x": _rounded(x[positions]),
            "y": _rounded(y[positions]),
            "customdata": [f"{labels[row]}, neuron {unit}: bias {-negative:.4g}" for negative, row, unit in shown],
            "marker": {"color": VERMILLION, "size": 8, "symbol": "circle-open", "line": {"width": 2, "color": VERMILLION}},
            "hovertemplate": "%{customdata}<extra>planned</extra>",
        },
    ]
    layout: dict[str, Any] = {
        "xaxis": axis("importance", **_ticks(importance, units[0])),
        "yaxis": axis("bias", **_ticks(bias, units[1])),
        "showlegend": True,
        "legend": LEGEND_ABOVE,
        "hovermode": "closest",
    }
    spared = ""
    share = 0.0
    if marks:
        highest = max(float(importance[first[row] + unit]) for _, row, unit in marks)
        share = float((importance > highest).mean())
        edge = float(scaled(np.array([highest]), units[0])[0])
        spared = (
            f" Nothing was selected from the shaded region on the right, the {share:.1%} of the neurons with a higher importance than any "
            "planned one."
        )
        if share > 0:
            region = {"type": "rect", "xref": "x", "yref": "paper", "x0": edge, "x1": float(x.max()), "y0": 0, "y1": 1}
            layout["shapes"] = [{**region, "fillcolor": GREY, "opacity": 0.18, "line": {"width": 0}, "layer": "below"}]
            layout["annotations"] = [
                {
                    "x": float(x.max()),
                    "y": 1,
                    "xref": "x",
                    "yref": "paper",
                    "text": "untouched",
                    "showarrow": False,
                    "xanchor": "right",
                    "yanchor": "top",
                }
            ]
    table = [
        [labels[row], str(unit), number(-negative), number(float(importance[first[row] + unit]))]
        for negative, row, unit in shown[:50]
    ]
    note = "The 50 with the highest bias; all values are in scores.safetensors and plan.json." if len(marks) > 50 else ""
    return Chart(
        name="bias-against-importance",
        title="Bias against importance",
        caption="Every neuron of the model by its two scores, both on logarithmic scales; the background is the density of neurons. "
        "Circles are the planned neurons: high up is biased, far left is unimportant." + spared,
        summary=f"{len(bias):,} neurons by importance and bias, {len(marks):,} of them planned; the table below lists those.",
        data=data,
        layout=layout,
        table=Table(columns=("layer", "neuron", "bias", "importance"), rows=table, note=note),
        zoom=True,
        height=520,
    )


def _rounded(values: NDArray[Any]) -> list[float]:
    return [float(f"{value:.4g}") for value in values]
