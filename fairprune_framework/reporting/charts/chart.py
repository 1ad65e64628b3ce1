"""A chart as data: traces and layout in plotly's vocabulary, its table, and the controls that replace parts of it.

The page, notebooks and static files draw the same description: the page by plotly.js, notebooks as a `plotly` figure, files by
`static.py`. Texts of users pass through `plain`, since plotly interprets some HTML in labels.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, YELLOW, GREY = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#f0e442",
    "#767676",
)
"""Okabe and Ito 2008, and a grey for controls: distinguishable with any colour vision, visible on white and on black."""
BEFORE, AFTER, CONTROL = BLUE, VERMILLION, GREY
ESTIMABLE = 2.0
"""A relative change with a bound beyond 200 % is not estimable: axes do not follow its interval."""
CYCLE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x")
SEQUENTIAL = "Cividis"
DIVERGING = [[0.0, BLUE], [0.5, "#f7f7f7"], [1.0, VERMILLION]]


@dataclass(frozen=True, kw_only=True)
class Table:
    """The numbers of a chart, as text."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Control:
    """An input above a chart."""

    label: str
    kind: Literal["select", "range"]
    options: Sequence[str]
    start: int = 0


@dataclass(frozen=True, kw_only=True)
class Patch:
    """The changes of one option of a control; `branches` are the options of the next control."""

    data: Sequence[Mapping[str, Any]] = ()
    """One mapping per trace, merged into it."""
    layout: Mapping[str, Any] = field(default_factory=dict)
    branches: Sequence[Patch] = ()

    def to_json(self) -> dict[str, Any]:
        """The form read by the page."""
        return {"data": list(self.data), "layout": dict(self.layout), "branches": [b.to_json() for b in self.branches]}


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One chart. `patches` are the options of the first control."""

    name: str
    title: str
    caption: str
    """How to read it."""
    summary: str
    """The text for screen readers."""
    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    table: Table
    controls: Sequence[Control] = ()
    patches: Sequence[Patch] = ()
    zoom: bool = False
    height: int = 420

    def drawn(self, *choice: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Traces and layout with one option selected per control; by default the initial ones."""
        data, layout = [dict(trace) for trace in self.data], _merged({}, self.layout)
        branches = self.patches
        for index, control in enumerate(self.controls):
            if not branches:
                break
            patch = branches[choice[index] if index < len(choice) else control.start]
            for trace, change in zip(data, patch.data, strict=False):
                trace |= _merged(trace, change)
            layout = _merged(layout, patch.layout)
            branches = patch.branches
        return data, {**layout, "height": self.height}

    def figure(self, *choice: int) -> Any:
        """A `plotly.graph_objects.Figure`."""
        import plotly.graph_objects as go

        data, layout = self.drawn(*choice)
        return go.Figure(data=data, layout={**layout, "title": {"text": self.title}, "template": "plotly_white"})

    def to_json(self) -> dict[str, Any]:
        """The form read by the page; numpy arrays are left to the encoder."""
        return {
            "name": self.name,
            "data": list(self.data),
            "layout": {**self.layout, "height": self.height},
            "controls": [{"start": control.start} for control in self.controls],
            "patches": [patch.to_json() for patch in self.patches],
        }


def _merged(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in change.items():
        known = merged.get(key)
        merged[key] = _merged(known, value) if isinstance(value, Mapping) and isinstance(known, Mapping) else value
    return merged


def plain(text: object, most: int | None = None) -> str:
    """A user's text for a label: never markup, and truncated to `most` characters with an ellipsis.

    >>> plain("<b>Anna & Bo</b>", 8)
    '&lt;b&gt;Anna…'
    """
    label = str(text)
    if most is not None and len(label) > most:
        label = label[: most - 1] + "…"
    return html.escape(label, quote=False)


_SAME = 1e-6
"""Relative changes that differ by less are one, but for rounding."""


def percent(value: float | None, digits: int = 1) -> str:
    r"""A signed share in percent; a dash for None.

    >>> percent(-0.0456)
    '−4.6\xa0%'
    """
    return "–" if value is None else f"{100 * value:+,.{digits}f}\u00a0%".replace("-", "−")  # a non-breaking space


def number(value: Any, digits: int = 4) -> str:
    """A number in few digits; a dash for None.

    >>> number(0.0357491)
    '0.03575'
    """
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}g}".replace("-", "−")


def interval(row: Mapping[str, Any]) -> str:
    """The 95 % interval of the change of a row, in percent."""
    low, high = row.get("ci_low"), row.get("ci_high")
    return "–" if low is None or high is None else f"{percent(low)} to {percent(high)}"


def basis(row: Mapping[str, Any]) -> str:
    """What the change of a row is a share of, where it is not `before`, and what is kept of a capability; otherwise empty.

    The change of a score with an ideal is that of its distance from it: of an accuracy that falls it is above 0.

    >>> basis({"before": 0.5, "after": 0.4, "change": 0.2, "ideal": 1.0, "retention": 0.8})
    'of the distance from 1; 80.0% kept'
    """
    before, after, change, ideal, kept = (row.get(name) for name in ("before", "after", "change", "ideal", "retention"))
    if before is None or after is None or ideal is None:
        return ""
    parts = []
    if change is not None and (not before or abs(after / before - 1 - change) > _SAME * max(abs(change), 1.0)):
        parts.append(f"of the distance from {ideal:g}")
    if kept is not None and ideal:  # more of a perplexity is nothing kept
        low, high = row.get("retention_low"), row.get("retention_high")
        parts.append(f"{kept:.1%} kept" + ("" if low is None or high is None else f" [{100 * low:.0f}, {100 * high:.0f}]"))
    return "; ".join(parts)


def edges(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """The range that an axis of relative changes covers: every change, and the intervals within `ESTIMABLE`.

    >>> edges([{"change": -0.5, "ci_low": -0.6, "ci_high": -0.4}, {"change": -0.1, "ci_low": -1.0, "ci_high": 241.0}])
    (-0.6, 0.0)
    """
    ends = [0.0, *(row["change"] for row in rows)]
    for row in rows:
        low, high = row["ci_low"], row["ci_high"]
        if low is not None and high is not None and max(abs(low), abs(high)) <= ESTIMABLE:
            ends += [low, high]
    return min(ends), max(ends)


def error_bars(rows: Sequence[Mapping[str, Any]], within: tuple[float, float], **style: Any) -> dict[str, Any]:
    """`error_x` of the changes of rows: their 95 % intervals, clipped to the edges; 0 without an interval."""
    known = [row["ci_low"] is not None and row["ci_high"] is not None for row in rows]
    return {
        "type": "data",
        "symmetric": False,
        "array": [min(row["ci_high"], within[1]) - row["change"] if ok else 0 for row, ok in zip(rows, known, strict=True)],
        "arrayminus": [row["change"] - max(row["ci_low"], within[0]) if ok else 0 for row, ok in zip(rows, known, strict=True)],
        **style,
    }


def beyond(rows: Sequence[Mapping[str, Any]], labels: Sequence[str], within: tuple[float, float]) -> list[dict[str, Any]]:
    """Two traces, left and right: an arrow with its number at the edge for every bound that lies beyond it."""
    traces = []
    for bound, edge, symbol in (("ci_low", within[0], "triangle-left"), ("ci_high", within[1], "triangle-right")):
        outside = [
            (label, row[bound])
            for row, label in zip(rows, labels, strict=True)
            if row["ci_low"] is not None and row["ci_high"] is not None and not within[0] <= row[bound] <= within[1]
        ]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers+text",
                "name": "interval beyond the axis",
                "showlegend": False,
                "x": [edge] * len(outside),
                "y": [label for label, _ in outside],
                "text": [f"to {percent(value, 0)}" for _, value in outside],
                "textposition": "top right" if bound == "ci_low" else "top left",
                "marker": {"color": GREY, "size": 10, "symbol": symbol},
                "hoverinfo": "skip",
            }
        )
    return traces


def axis(title: str, **more: Any) -> dict[str, Any]:
    """An axis with a title."""
    return {"title": {"text": title}, "automargin": True, "zeroline": False, **more}


LEGEND_ABOVE: dict[str, Any] = {"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0, "xanchor": "left"}
