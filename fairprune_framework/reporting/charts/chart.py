"""A chart as data: traces and layout in plotly's words, its table, and the controls that exchange parts of it.

The page, notebooks and static files all draw this one description: the page by plotly.js, notebooks as a `plotly` figure, files by
`static.py`. Texts of users pass through `plain`, since plotly reads some HTML in labels.
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
"""Okabe and Ito 2008, and a grey for controls: told apart by all kinds of colour vision, visible on white and on black."""
BEFORE, AFTER, CONTROL = BLUE, VERMILLION, GREY
CYCLE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x")
SEQUENTIAL = "Cividis"
DIVERGING = [[0.0, BLUE], [0.5, "#f7f7f7"], [1.0, VERMILLION]]


@dataclass(frozen=True, kw_only=True)
class Table:
    """The numbers behind a chart, as text."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Control:
    """A choice above a chart."""

    label: str
    kind: Literal["select", "range"]
    options: Sequence[str]
    start: int = 0


@dataclass(frozen=True, kw_only=True)
class Patch:
    """What one option of a control changes; `branches` are the options of the next control."""

    data: Sequence[Mapping[str, Any]] = ()
    """One mapping a trace, laid over it."""
    layout: Mapping[str, Any] = field(default_factory=dict)
    branches: Sequence[Patch] = ()

    def to_json(self) -> dict[str, Any]:
        """As the page reads it."""
        return {"data": list(self.data), "layout": dict(self.layout), "branches": [b.to_json() for b in self.branches]}


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One picture. `patches` are the options of the first control."""

    name: str
    title: str
    caption: str
    """How to read it."""
    summary: str
    """What a screen reader says in place of the picture."""
    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    table: Table
    controls: Sequence[Control] = ()
    patches: Sequence[Patch] = ()
    zoom: bool = False
    height: int = 420

    def drawn(self, *choice: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Traces and layout with an option chosen for each control; without a choice as the controls start."""
        data, layout = [dict(trace) for trace in self.data], _merged({}, self.layout)
        branches = self.patches
        for place, control in enumerate(self.controls):
            if not branches:
                break
            patch = branches[choice[place] if place < len(choice) else control.start]
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
        """As the page reads it; arrays of numpy are left to the encoder."""
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
    """A text of the user's for a label: never markup, and cut to `most` characters with an ellipsis.

    >>> plain("<b>Anna & Bo</b>", 8)
    '&lt;b&gt;Anna…'
    """
    found = str(text)
    if most is not None and len(found) > most:
        found = found[: most - 1] + "…"
    return html.escape(found, quote=False)


def percent(value: float | None, digits: int = 1) -> str:
    """A signed share in percent; a dash where there is none.

    >>> percent(-0.0456)
    '−4.6 %'
    """
    return "–" if value is None else f"{100 * value:+.{digits}f} %".replace("-", "−")


def number(value: Any, digits: int = 4) -> str:
    """A number in few digits; a dash where there is none.

    >>> number(0.0357491)
    '0.03575'
    """
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}g}".replace("-", "−")


def interval(row: Mapping[str, Any]) -> str:
    """The 95 % interval of a row's change, in percent."""
    low, high = row.get("ci_low"), row.get("ci_high")
    return "–" if low is None or high is None else f"{percent(low)} to {percent(high)}"


def axis(title: str, **more: Any) -> dict[str, Any]:
    """An axis with a title."""
    return {"title": {"text": title}, "automargin": True, "zeroline": False, **more}


LEGEND_ABOVE: dict[str, Any] = {"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0, "xanchor": "left"}
