"""Charts as files for papers, drawn by matplotlib, without the browser that plotly's own export needs.

The module reads the same traces and layout as the page; an unsupported element is an error, not an empty picture.
"""

from __future__ import annotations

import html
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fairprune_framework.errors import UserError
from fairprune_framework.reporting.charts.chart import Chart

FORMATS = ("svg", "png", "pdf")
_DASHES: Mapping[str, Any] = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}
_SYMBOLS = {
    "circle": "o",
    "square": "s",
    "diamond": "D",
    "triangle-up": "^",
    "triangle-left": "<",
    "triangle-right": ">",
    "cross": "P",
    "x": "X",
    "x-thin": "x",
}
_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6eaee",
    "legend.frameon": False,
    "svg.hashsalt": "fairprune",
    "pdf.fonttype": 42,
}


def save(charts: Sequence[Chart], folder: Path, format: str = "svg") -> list[Path]:
    """Write `<name>.<format>` for each chart; equal charts give equal bytes.

    Raises:
        UserError: an unknown format, or matplotlib is not installed.
    """
    if format not in FORMATS:
        raise UserError(f"--format must be one of {', '.join(FORMATS)}. Got {format!r} instead.")
    if find_spec("matplotlib") is None:
        raise UserError("figures for papers need matplotlib: pip install 'fairprune_framework[figures]'")
    from fairprune_framework.utilities.files import atomic, refuse_unwritable

    refuse_unwritable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for chart in charts:
        figure = drawn(chart)
        path = folder / f"{chart.name}.{format}"
        undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}[format]
        with atomic(path) as temporary, warnings.catch_warnings(), _style():
            warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
            figure.savefig(temporary, format=format, dpi=200, bbox_inches="tight", metadata=undated)
        written.append(path)
    return written


def _style() -> Any:
    import matplotlib as mpl

    return mpl.rc_context(_STYLE)


def drawn(chart: Chart, *choice: int) -> Any:
    """A `matplotlib.figure.Figure` of a chart, with one option selected per control."""
    from matplotlib.figure import Figure

    data, layout = chart.drawn(*choice)
    with _style():
        figure = Figure(figsize=(6.8, layout["height"] / 96))
        axes: dict[str, Any] = {}
        for trace in data:
            key = trace.get("yaxis", "y")
            if key not in axes:
                axes[key] = _axes(figure, layout, key)
        categories_of = {key: _categories(data, layout, key) for key in axes}
        for trace in data:
            key = trace.get("yaxis", "y")
            _DRAW[trace["type"]](axes[key], trace, categories_of[key])
        for key, ax in axes.items():
            _dress(ax, layout, key, categories_of[key])
        handles, labels = next(iter(axes.values())).get_legend_handles_labels()
        if layout.get("showlegend") and handles:
            first = next(iter(axes.values()))
            first.legend(handles, labels, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, fontsize=8, borderaxespad=0.2)
        figure.suptitle(_text(chart.title), x=0.02, ha="left", weight="bold", y=1.04)
    return figure


def _text(text: object) -> str:
    """A label without plotly's tags, never parsed as mathematics."""
    label = html.unescape(re.sub(r"</?b>|<br>", "", str(text)))
    return label.replace("$", r"\$")


def _axes(figure: Any, layout: Mapping[str, Any], key: str) -> Any:
    low, high = layout.get(f"yaxis{key[1:]}", {}).get("domain", (0.0, 1.0))
    return figure.add_axes((0.14, 0.12 + 0.8 * low, 0.8, 0.8 * (high - low)))


def _categories(data: Sequence[Mapping[str, Any]], layout: Mapping[str, Any], key: str) -> dict[str, list[str] | None]:
    """The categories of both axes, in order of appearance; None for numbers."""
    categories: dict[str, list[str] | None] = {}
    for name in ("x", "y"):
        texts = [
            value
            for trace in data
            if trace.get("yaxis", "y") == key
            for value in _values(trace, name)
            if isinstance(value, str)
        ]
        kind = layout.get(f"{name}axis{key[1:]}", {}).get("type")
        categories[name] = list(dict.fromkeys(texts)) if texts or kind == "category" else None
    return categories


def _values(trace: Mapping[str, Any], name: str) -> Iterable[Any]:
    values: Iterable[Any] | None = trace.get(name)
    return () if values is None else values


def _at(values: Any, categories: list[str] | None) -> list[float]:
    if categories is None:
        return [float(value) for value in values]
    return [float(categories.index(value)) for value in values]


def _scatter(ax: Any, trace: Mapping[str, Any], categories_of: Mapping[str, list[str] | None]) -> None:
    x, y = _at(trace["x"], categories_of["x"]), _at(trace["y"], categories_of["y"])
    if not x:
        return
    mode, marker, line = trace["mode"], trace.get("marker", {}), trace.get("line", {})
    label = _text(trace.get("name", "")) if trace.get("showlegend", True) and trace.get("name") else "_nolegend_"
    if "lines" in mode:
        ax.plot(x, y, _DASHES[line.get("dash", "solid")], color=line["color"], lw=line.get("width", 1.5), label=label)
        label = "_nolegend_"
    if "markers" in mode:
        symbol = marker.get("symbol", "circle")
        hollow, shape = symbol.endswith("-open"), _SYMBOLS[symbol.removesuffix("-open")]
        size = marker.get("size", 8)
        sizes = [(0.6 * each) ** 2 for each in (size if isinstance(size, list) else [size] * len(x))]
        if shape == "x":
            ax.scatter(x, y, sizes, marker=shape, c=marker["color"], lw=1.2, label=label, zorder=3)
        else:
            ax.scatter(
                x,
                y,
                sizes,
                marker=shape,
                facecolors="none" if hollow else marker["color"],
                edgecolors=marker["color"],
                lw=1.0,
                label=label,
                zorder=3,
            )
    for name in ("error_x", "error_y"):
        if (error := trace.get(name)) is not None:
            reach = [error["arrayminus"], error["array"]]
            ax.errorbar(x, y, **{f"{name[-1]}err": reach}, fmt="none", ecolor=error["color"], elinewidth=1.2, capsize=2.5)
    if "text" in mode:
        for a, b, text in zip(x, y, trace["text"], strict=True):
            if text:
                bold = "bold" if "<b>" in text else "normal"
                ax.annotate(
                    _text(text), (a, b), xytext=(0, 4), textcoords="offset points", ha="center", fontsize=7, weight=bold
                )


def _bar(ax: Any, trace: Mapping[str, Any], categories_of: Mapping[str, list[str] | None]) -> None:
    ax.bar(
        _at(trace["x"], categories_of["x"]),
        _at(trace["y"], categories_of["y"]),
        color=trace["marker"]["color"],
        label="_nolegend_",
    )


def _heatmap(ax: Any, trace: Mapping[str, Any], categories_of: Mapping[str, list[str] | None]) -> None:
    import numpy as np
    from matplotlib.colors import LinearSegmentedColormap

    z = np.array([[np.nan if value is None else value for value in row] for row in trace["z"]], dtype=float)
    scale = trace["colorscale"]
    colors = (
        scale.lower() if isinstance(scale, str) else LinearSegmentedColormap.from_list("ours", [tuple(stop) for stop in scale])
    )
    x, y = (_edges(trace, name, z.shape[1 - axis], categories_of[name]) for axis, name in enumerate(("x", "y")))
    mesh = ax.pcolormesh(x, y, z, cmap=colors, vmin=trace.get("zmin"), vmax=trace.get("zmax"), rasterized=z.size > 4000)
    bar = ax.figure.colorbar(mesh, ax=ax, pad=0.02, fraction=0.05)
    described = trace.get("colorbar", {})
    bar.outline.set_visible(False)
    bar.set_label(_text(described.get("title", {}).get("text", "")))
    if "tickvals" in described:
        low, high = mesh.get_clim()
        ticks = [(v, t) for v, t in zip(described["tickvals"], described["ticktext"], strict=True) if low <= v <= high]
        bar.set_ticks([v for v, _ in ticks], labels=[t for _, t in ticks])
    for row, texts in enumerate(trace.get("text", ())):
        for column, text in enumerate(texts):
            red, green, blue, _ = mesh.cmap(mesh.norm(z[row, column]))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            ax.text(column, row, _text(text), ha="center", va="center", fontsize=8, color="white" if dark else "black")


def _edges(trace: Mapping[str, Any], name: str, count: int, categories: list[str] | None) -> Any:
    import numpy as np

    if categories is not None:
        return np.arange(count + 1) - 0.5
    if trace.get(name) is not None:
        centre = np.asarray(trace[name], dtype=float)
        step = (centre[-1] - centre[0]) / max(len(centre) - 1, 1) or 1.0
        return np.append(centre - step / 2, centre[-1] + step / 2)
    step = trace.get(f"d{name}", 1)
    return trace.get(f"{name}0", 0) + step * (np.arange(count + 1) - 0.5)


_DRAW = {"scatter": _scatter, "bar": _bar, "heatmap": _heatmap}


def _dress(ax: Any, layout: Mapping[str, Any], key: str, categories_of: Mapping[str, list[str] | None]) -> None:
    from matplotlib.ticker import PercentFormatter

    for name in ("x", "y"):
        axis = layout.get(f"{name}axis{key[1:]}", {})
        ours = ax.xaxis if name == "x" else ax.yaxis
        ours.set_label_text(_text(axis.get("title", {}).get("text", "")))
        if str(axis.get("tickformat", "")).endswith("%"):
            ours.set_major_formatter(PercentFormatter(1.0))
        if (categories := categories_of[name]) is not None:
            step = max(1, -(-len(categories) // axis["nticks"])) if "nticks" in axis else 1
            shown = list(range(0, len(categories), step))
            ours.set_ticks(shown, labels=[_text(categories[index]) for index in shown])
        elif "tickvals" in axis:
            ours.set_ticks(axis["tickvals"], labels=axis["ticktext"])
        if axis.get("showgrid") is False:
            ours.grid(False)
        if axis.get("zeroline"):
            (ax.axvline if name == "x" else ax.axhline)(0, color="#57606a", lw=0.8, zorder=1)
        if axis.get("rangemode") == "tozero" and name == "y":
            ax.set_ylim(bottom=0)
        if axis.get("autorange") == "reversed":
            ours.set_inverted(True)
    if key != "y":
        return
    for shape in layout.get("shapes", ()):
        ax.axvspan(shape["x0"], shape["x1"], color=shape["fillcolor"], alpha=shape["opacity"], lw=0, zorder=0)
    for note in layout.get("annotations", ()):
        ax.annotate(
            _text(note["text"]), (note["x"], 0.97), xycoords=("data", "axes fraction"), ha="right", va="top", fontsize=8
        )
