"""The plane of tokens against scikit-learn's PCA on the tensors of the folder, and distances in numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.decomposition import PCA

from fairprune_framework.functional.planes import planes
from fairprune_framework.reporting.charts.tokens import token_projection
from fairprune_framework.reporting.run_data import Source

RNG = np.random.default_rng(0)
LAYERS = [0, 3, 7]


def variant(attribute: str, tokens: list[str], start: int, end: int) -> dict[str, Any]:
    return {"attribute": attribute, "tokens": tokens, "start": start, "end": end, "text": " ".join(tokens)}


TALL = {
    "category": "stature",
    "control": True,
    "layers": {"mlp": LAYERS},
    "variants": [
        variant("tall", ["tall", "man"], 0, 1),
        variant("short", ["short", "man"], 0, 1),
        variant("wide", ["wide", "man"], 0, 1),
    ],
}
RACE = {
    "category": "race",
    "control": False,
    "layers": {"mlp": LAYERS, "attention": LAYERS},
    "variants": [
        variant("Black", ["<s>", "The", "Black", "man", "."], 2, 3),
        variant("Native <b>", ["<s>", "The", "Native", "Amer", "man", "."], 2, 4),
    ],
}


def tensor(rows: int) -> Any:
    return RNG.normal(size=(len(LAYERS), rows, 16)).astype(np.float32)


TENSORS = {
    **{f"{when}/0/{tap}": tensor(11) for when in ("before", "after") for tap in ("mlp", "attention")},
    "before/1/mlp": tensor(6),
}


def chart(tensors: Any = TENSORS) -> Any:
    drawn = {}
    for name, before in tensors.items():
        when, place, tap = name.split("/")
        if when == "before":
            shapes = planes(before, tensors.get(f"after/{place}/{tap}"), [RACE, TALL][int(place)]["variants"])
            drawn |= {f"{part}/{place}/{tap}": value for part, value in shapes.parts.items()}
    return token_projection(Source(folder=Path("x"), exhibits={"projections": [RACE, TALL]}, representations=drawn))


def points(traces: Any, of: Any) -> np.ndarray:
    return np.concatenate([np.stack([traces[i]["x"], traces[i]["y"]], 1) for i in of])


@pytest.mark.parametrize("layer", range(len(LAYERS)))
@pytest.mark.parametrize(("tap", "place"), [("attention", 0), ("mlp", 1)])
def test_the_plane_is_that_of_the_original_model(layer: int, tap: str, place: int) -> None:
    """Without the first token, which all variants share; the pruned model's tokens in the same plane. Signs are free."""
    kept = [1, 2, 3, 4, 6, 7, 8, 9, 10]
    before, after = (TENSORS[f"{when}/0/{tap}"][layer][kept].astype(np.float64) for when in ("before", "after"))
    expected = PCA(2, svd_solver="full").fit(before)
    traces, layout = chart().drawn(0, place, layer)
    found = points(traces, (0, 1))
    signs = np.sign((found * expected.transform(before)).sum(0))
    np.testing.assert_allclose(found, signs * expected.transform(before), rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(points(traces, (3, 4)), signs * expected.transform(after), rtol=2e-3, atol=2e-3)
    share = [f"{value:.0%}" for value in expected.explained_variance_ratio_]
    assert share[0] in layout["xaxis"]["title"]["text"]
    assert share[1] in layout["yaxis"]["title"]["text"]


def test_distances_between_variants_at_the_last_token() -> None:
    rows = [row for row in chart().table.rows if row[0] == "race" and row[1] == "MLP output"]
    assert [row[2] for row in rows] == ["0", "3", "7"]
    for row, layer in zip(rows, range(3), strict=True):
        for text, when in zip(row[3:], ("before", "after"), strict=True):
            values = TENSORS[f"{when}/0/mlp"][layer].astype(np.float64)
            assert float(text) == pytest.approx(np.linalg.norm(values[4] - values[10]), rel=5e-3)
    control = [row for row in chart().table.rows if row[0] == "stature"]
    values = TENSORS["before/1/mlp"][0].astype(np.float64)[[1, 3, 5]]
    pairs = [np.linalg.norm(values[i] - values[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert float(control[0][3]) == pytest.approx(np.mean(pairs), rel=5e-3)
    assert control[0][4] == "–"


def test_a_first_token_that_is_the_attribute_stays() -> None:
    traces, _ = chart().drawn(1, 1, 0)
    assert [len(trace["x"]) for trace in traces] == [2, 2, 2, 0, 0, 0]


def test_labels_are_text_and_the_attribute_is_bold() -> None:
    traces, _ = chart().drawn(0, 1, 0)
    assert traces[0]["text"] == ["The", "<b>Black</b>", "man", "."]
    assert traces[1]["text"] == ["", "<b>Native</b>", "<b>Amer</b>", "", ""]
    assert (traces[1]["name"], traces[4]["name"]) == ("Native &lt;b&gt;", "Native &lt;b&gt;, after")
    assert traces[1]["marker"]["size"] == [8, 15, 15, 8, 8]
    assert traces[1]["customdata"] == ["The", "Native", "Amer", "man", "."]
    assert traces[2]["showlegend"] is False  # the second contrast has three variants


def test_an_output_that_a_contrast_lacks_is_empty() -> None:
    traces, _ = chart().drawn(1, 0, 1)
    assert all(trace["x"] == trace["y"] == [] for trace in traces)


def test_no_chart_without_exhibits() -> None:
    assert token_projection(Source(folder=Path("x"))) is None
    assert chart({}) is None
