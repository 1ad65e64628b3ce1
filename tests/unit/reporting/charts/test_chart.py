"""A chart as data: options over its first state, texts that stay text, and axes that ignore intervals nobody can read."""

from __future__ import annotations

import html
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairprune_framework.reporting.charts.chart import (
    Chart,
    Control,
    Patch,
    Table,
    basis,
    beyond,
    edges,
    error_bars,
    interval,
    number,
    percent,
    plain,
)


def chart(**more: Any) -> Chart:
    """Two controls: the first changes the second trace and the title of x, the second the first trace."""
    leaf = [Patch(data=[{"y": [i]}]) for i in range(3)]
    first = [
        Patch(data=[{}, {"x": [10 * i], "marker": {"size": i}}], layout={"xaxis": {"title": {"text": f"x{i}"}}}, branches=leaf)
        for i in range(2)
    ]
    values = {
        "name": "it",
        "title": "A title",
        "caption": "",
        "summary": "",
        "data": [
            {"type": "scatter", "x": [1], "y": [-1]},
            {"type": "scatter", "x": [2], "marker": {"color": "red", "size": 9}},
        ],
        "layout": {"xaxis": {"title": {"text": "x"}, "range": [0, 1]}},
        "table": Table(columns=("a",), rows=[["1"]]),
        "controls": (
            Control(label="A", kind="select", options=["0", "1"], start=1),
            Control(label="B", kind="range", options=list("abc")),
        ),
        "patches": first,
        "height": 300,
    }
    return Chart(**{**values, **more})


@pytest.mark.parametrize("choice", [(), (1,), (0,), (0, 2), (1, 1)])
def test_an_option_of_each_control_is_merged_in(choice: tuple[int, ...]) -> None:
    a, b = (*choice, *(1, 0)[len(choice) :])
    data, layout = chart().drawn(*choice)
    assert data == [
        {"type": "scatter", "x": [1], "y": [b]},
        {"type": "scatter", "x": [10 * a], "marker": {"color": "red", "size": a}},
    ]
    assert layout == {"xaxis": {"title": {"text": f"x{a}"}, "range": [0, 1]}, "height": 300}


def test_drawing_changes_nothing_of_the_chart() -> None:
    one = chart()
    before = one.to_json()
    one.drawn(0, 2)
    assert one.to_json() == before == chart().to_json()


def test_a_chart_without_controls() -> None:
    data, layout = chart(controls=(), patches=()).drawn()
    assert [trace["x"] for trace in data] == [[1], [2]]
    assert layout["xaxis"]["title"]["text"] == "x"


def test_the_figure_is_plotlys() -> None:
    figure = chart().figure(0, 2)
    assert [tuple(trace.x) for trace in figure.data] == [(1,), (0,)]
    assert tuple(figure.data[0].y) == (2,)
    assert (figure.layout.title.text, figure.layout.height) == ("A title", 300)


def test_json_for_the_page_holds_every_branch() -> None:
    found = chart().to_json()
    assert found["controls"] == [{"start": 1}, {"start": 0}]
    assert [len(patch["branches"]) for patch in found["patches"]] == [3, 3]
    assert found["patches"][1]["branches"][2]["data"] == [{"y": [2]}]


# -- texts and numbers -------------------------------------------------------------------------------------------------------


@given(st.text())
def test_texts_are_never_markup(text: str) -> None:
    found = plain(text)
    assert "<" not in found
    assert html.unescape(found) == html.unescape(html.escape(text, quote=False))


@pytest.mark.parametrize(
    ("text", "most", "expected"),
    [("abcdef", 6, "abcdef"), ("abcdefg", 6, "abcde…"), ("a<b", 2, "a…"), (3, None, "3")],
)
def test_long_texts_end_in_an_ellipsis(text: object, most: int | None, expected: str) -> None:
    assert plain(text, most) == expected


@pytest.mark.parametrize(
    ("value", "digits", "expected"),
    [
        (None, 1, "–"),
        (0.1234, 1, "+12.3\u00a0%"),
        (-0.5, 0, "−50\u00a0%"),
        (0.0, 1, "+0.0\u00a0%"),
        (123.4, 0, "+12,340\u00a0%"),
    ],
)
def test_percent(value: float | None, digits: int, expected: str) -> None:
    assert percent(value, digits) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [(None, "–"), (1234567, "1,234,567"), (0.000123456, "0.0001235"), (-1.5, "−1.5"), (2.0, "2")]
)
def test_number(value: float | None, expected: str) -> None:
    assert number(value) == expected


def test_an_interval_needs_both_ends() -> None:
    assert interval({"ci_low": -0.1, "ci_high": 0.2}) == "−10.0\u00a0% to +20.0\u00a0%"
    assert interval({"ci_low": None, "ci_high": 0.2}) == interval({}) == "–"


# -- intervals on an axis ----------------------------------------------------------------------------------------------------


def row(change: float, low: float | None = None, high: float | None = None) -> dict[str, float | None]:
    return {"change": change, "ci_low": low, "ci_high": high}


ROWS = [row(-0.5, -0.6, -0.4), row(0.1), row(-0.2, -1.0, 30.0), row(0.3, 0.2, 0.9)]


def test_edges_hold_every_change_and_every_interval_that_can_be_estimated() -> None:
    assert edges(ROWS) == (-0.6, 0.9)
    assert edges([row(0.2)]) == (0.0, 0.2)
    assert edges([]) == (0.0, 0.0)
    assert edges([row(5.0, 2.5, 9.0)]) == (0.0, 5.0)


def test_bars_end_at_the_interval_or_at_the_edge() -> None:
    bars = error_bars(ROWS, (-0.6, 0.9), color="red")
    low = [r["change"] - b for r, b in zip(ROWS, bars["arrayminus"], strict=True)]  # type: ignore[operator]
    high = [r["change"] + b for r, b in zip(ROWS, bars["array"], strict=True)]  # type: ignore[operator]
    assert low == pytest.approx([-0.6, 0.1, -0.6, 0.2])
    assert high == pytest.approx([-0.4, 0.1, 0.9, 0.9])
    assert (bars["symmetric"], bars["color"]) == (False, "red")


def test_what_lies_beyond_the_axis_is_an_arrow_with_its_number() -> None:
    left, right = beyond(ROWS, list("abcd"), (-0.6, 0.9))
    assert (left["y"], left["x"], left["text"]) == (["c"], [-0.6], ["to −100\u00a0%"])
    assert (right["y"], right["x"], right["text"]) == (["c"], [0.9], ["to +3,000\u00a0%"])
    assert beyond(ROWS, list("abcd"), (-2.0, 50.0))[1]["x"] == []


@pytest.mark.parametrize(
    ("before", "after", "change", "ideal", "expected"),
    [
        (0.6, 0.55, -0.5, 0.5, "of the distance from 0.5"),
        (0.1, -0.1, 0.0, 0.0, "of the distance from 0"),  # a score of bias that turned
        (2.0, -3.0, -2.5, 0.0, ""),  # a margin keeps its sign
        (2.0, 1.0, -0.5, 0.0, ""),
        (0.0, 0.1, None, 0.0, ""),
        (0.5, None, None, 1.0, ""),
    ],
)
def test_what_a_change_is_a_share_of(
    before: float, after: float | None, change: float | None, ideal: float, expected: str
) -> None:
    assert basis({"before": before, "after": after, "change": change, "ideal": ideal}) == expected
