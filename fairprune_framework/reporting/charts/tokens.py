"""The second and third figure of the article: tokens of a contrast in the plane of two principal components, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairprune_framework.functional.pca import principal, steadied
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
        kept = _kept(contrast)
        branches = []
        for tap in taps:
            before_LRH = source.representations.get(f"before/{index}/{tap}")
            if before_LRH is None:
                branches.append(Patch(data=_empty(most), branches=[Patch() for _ in layers]))
                continue
            leaves, distances = _layers(contrast, kept, most, before_LRH, source.representations.get(f"after/{index}/{tap}"))
            branches.append(Patch(layout={"meta": {"tap": tap}}, branches=leaves))
            for layer, (before, after) in zip(contrast["layers"][tap], distances, strict=True):
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


def _kept(contrast: Mapping[str, Any]) -> list[NDArray[np.bool_]]:
    """The drawn tokens of each variant: all but a shared first one."""
    first = {variant["tokens"][0] for variant in contrast["variants"]}
    shared = len(first) == 1 and all(variant["start"] > 0 and len(variant["tokens"]) > 2 for variant in contrast["variants"])
    return [np.arange(len(variant["tokens"])) >= (1 if shared else 0) for variant in contrast["variants"]]


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


def _layers(
    contrast: Mapping[str, Any],
    kept: Sequence[NDArray[np.bool_]],
    most: int,
    before_LRH: NDArray[Any],
    after_LRH: NDArray[Any] | None,
) -> tuple[list[Patch], list[tuple[float, float | None]]]:
    """A patch per layer, and the distances between variants at the last token before and after."""
    sizes = [len(variant["tokens"]) for variant in contrast["variants"]]
    ends = np.cumsum(sizes)
    chosen = np.concatenate(kept)
    bounds = np.cumsum([0, *(int(keep.sum()) for keep in kept)])
    last = ends - 1
    previous = None
    patches, distances = [], []
    for layer in range(len(before_LRH)):
        before_MH = before_LRH[layer][chosen]
        after_MH = None if after_LRH is None else after_LRH[layer][chosen]
        at, then, share = principal(before_MH, after_MH)
        signs = steadied(at, previous)
        previous = at = at * signs
        points = [at, None if then is None else then * signs]
        data: list[dict[str, list[float]]] = []
        for when in points:
            for index in range(most):
                if when is None or index >= len(sizes):
                    data.append({"x": [], "y": []})
                else:
                    part = when[bounds[index] : bounds[index + 1]]
                    data.append({"x": _rounded(part[:, 0]), "y": _rounded(part[:, 1])})
        titles = [f"{name} component, {share[i]:.0%} of the variance" for i, name in enumerate(("first", "second"))]
        layout = {"xaxis": {"title": {"text": titles[0]}}, "yaxis": {"title": {"text": titles[1]}}}
        patches.append(Patch(data=data, layout=layout))
        distances.append((_spread(before_LRH[layer][last]), None if after_LRH is None else _spread(after_LRH[layer][last])))
    return patches, distances


def _rounded(values: NDArray[Any]) -> list[float]:
    """Four digits: the resolution of a screen."""
    return [float(f"{value:.4g}") for value in values]


def _spread(rows_VH: NDArray[Any]) -> float:
    rows = rows_VH.astype(np.float64)
    pairs = [(i, j) for i in range(len(rows)) for j in range(i)]
    return float(np.mean([np.linalg.norm(rows[i] - rows[j]) for i, j in pairs]))
