"""The second and third figure of the article: tokens of a contrast in the plane of two principal components, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairprune_framework.functional.planes import PARTS, Planes, drawn_tokens
from fairprune_framework.reporting.charts.chart import CYCLE, LEGEND_ABOVE, SYMBOLS, Chart, Control, Patch, Table, axis, plain
from fairprune_framework.reporting.run_data import Source

TAPS = ("attention", "mlp")
_NAMES = {"attention": "attention output", "mlp": "MLP output"}


def token_projection(source: Source) -> Chart | None:
    """PCA of token representations; controls: contrast, output, layer. None without exhibits."""
    shown = (source.exhibits or {}).get("projections") or ()
    taps = [tap for tap in TAPS if any(f"before/{index}/{tap}" in source.representations for index in range(len(shown)))]
    if not shown or not taps:
        return None
    most = max(len(contrast["variants"]) for contrast in shown)
    layers = max((contrast["layers"].get(tap, []) for contrast in shown for tap in taps), key=len)
    patches, names, rows = [], [], []
    for index, contrast in enumerate(shown):
        kept = drawn_tokens(contrast["variants"])
        branches = []
        for tap in taps:
            if f"before/{index}/{tap}" not in source.representations:
                branches.append(Patch(data=_empty(most), branches=[Patch() for _ in layers]))
                continue
            shapes = _planes(source, index, tap)
            leaves = _layers(contrast, kept, most, shapes)
            branches.append(Patch(layout={"meta": {"tap": tap}}, branches=leaves))
            after_L = [None] * len(leaves) if shapes.distance_after is None else shapes.distance_after
            for layer, before, after in zip(contrast["layers"][tap], shapes.distance_before, after_L, strict=True):
                rows.append(
                    [contrast["category"], _NAMES[tap], str(layer), f"{before:.3g}", "–" if after is None else f"{after:.3g}"]
                )
        patches.append(Patch(data=_labels(contrast, kept, most), branches=branches))
        word = "control: " if contrast["control"] else ""
        names.append(_short(f"{word}{contrast['category']} — {contrast['variants'][0]['text']}"))
    start = (0, len(taps) - 1, len(layers) // 2)
    skeleton = _skeleton(most)
    return Chart(
        name="token-projection",
        title="Tokens in the plane of the first two principal components",
        caption="Each mark is one token of one variant, at the output of attention or of the MLP, in the plane of the first two principal "
        "components of the original model. Large marks with bold labels are the attribute; where the marks of the variants diverge "
        "after it, the layer propagates the attribute. Filled: before; hollow: after, in the same plane. A shared first token is "
        "omitted: its activations dwarf all others. Axes are fitted to each layer separately, so compare shapes, not positions.",
        summary="Tokens of the variants of one contrast, in two dimensions, for one layer; the table below gives the distance between "
        "variants for every layer.",
        data=skeleton,
        layout={
            "xaxis": axis("first component", zeroline=True),
            "yaxis": axis("second component", zeroline=True),
            "showlegend": True,
            "legend": LEGEND_ABOVE,
            "hovermode": "closest",
        },
        table=Table(
            columns=("contrast", "output", "layer", "distance before", "distance after"),
            rows=rows,
            note="Distance: mean Euclidean distance between variants at the last token, in all dimensions.",
        ),
        controls=(
            Control(label="Contrast", kind="select", options=names, start=start[0]),
            Control(label="Output", kind="select", options=[_NAMES[tap] for tap in taps], start=start[1]),
            Control(label="Layer", kind="range", options=[str(layer) for layer in layers], start=start[2]),
        ),
        patches=patches,
        height=560,
    )


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:79] + "…"


def _planes(source: Source, index: int, tap: str) -> Planes:
    parts = {name: source.representations.get(f"{name}/{index}/{tap}") for name in PARTS}
    return Planes(**parts)  # type: ignore[arg-type]


def _skeleton(most: int) -> list[dict[str, Any]]:
    """One trace per variant before, then one per variant after."""
    traces: list[dict[str, Any]] = []
    for when in ("before", "after"):
        for index in range(most):
            color = CYCLE[index % len(CYCLE)]
            hollow = "-open" if when == "after" else ""
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers+text" if when == "before" else "markers",
                    "x": [],
                    "y": [],
                    "marker": {
                        "color": color,
                        "symbol": SYMBOLS[index % len(SYMBOLS)] + hollow,
                        "line": {"color": color, "width": 1.5},
                    },
                    "textposition": "top center",
                    "textfont": {"size": 12},
                    "hovertemplate": "%{customdata}<extra>%{fullData.name}</extra>",
                }
            )
    return traces


def _empty(most: int) -> list[dict[str, Any]]:
    return [{"x": [], "y": []} for _ in range(2 * most)]


def _labels(contrast: Mapping[str, Any], kept: Sequence[NDArray[np.bool_]], most: int) -> list[dict[str, Any]]:
    """The parts that are equal in all layers: names, labels, sizes."""
    labels_of_traces: list[dict[str, Any]] = []
    for when in ("before", "after"):
        for index in range(most):
            if index >= len(contrast["variants"]):
                labels_of_traces.append({"name": "", "text": [], "customdata": [], "x": [], "y": [], "showlegend": False})
                continue
            variant, keep = contrast["variants"][index], kept[index]
            tokens = [plain(token.strip() or "␣", 24) for token in variant["tokens"]]
            own = [variant["start"] <= i < variant["end"] for i in range(len(tokens))]
            labels = [
                f"<b>{token}</b>" if mine else (token if index == 0 else "") for token, mine in zip(tokens, own, strict=True)
            ]
            name = plain(variant["attribute"], 30)
            labels_of_traces.append(
                {
                    "name": name if when == "before" else f"{name}, after",
                    "showlegend": True,
                    "text": [label for label, ok in zip(labels, keep, strict=True) if ok] if when == "before" else [],
                    "customdata": [token for token, ok in zip(tokens, keep, strict=True) if ok],
                    "marker": {"size": [15 if mine else 8 for mine, ok in zip(own, keep, strict=True) if ok]},
                }
            )
    return labels_of_traces


def _layers(contrast: Mapping[str, Any], kept: Sequence[NDArray[np.bool_]], most: int, shapes: Planes) -> list[Patch]:
    """A patch per layer."""
    bounds = np.cumsum([0, *(int(keep.sum()) for keep in kept)])
    patches = []
    for layer, share in enumerate(shapes.share):
        data: list[dict[str, list[float]]] = []
        for when_LM2 in (shapes.before, shapes.after):
            for index in range(most):
                if when_LM2 is None or index >= len(kept):
                    data.append({"x": [], "y": []})
                else:
                    part = when_LM2[layer][bounds[index] : bounds[index + 1]]
                    data.append({"x": _rounded(part[:, 0]), "y": _rounded(part[:, 1])})
        titles = [f"{name} component, {share[i]:.0%} of the variance" for i, name in enumerate(("first", "second"))]
        patches.append(
            Patch(data=data, layout={"xaxis": {"title": {"text": titles[0]}}, "yaxis": {"title": {"text": titles[1]}}})
        )
    return patches


def _rounded(values: NDArray[Any]) -> list[float]:
    """Four digits: the resolution of a screen."""
    return [float(f"{value:.4g}") for value in values]
