"""What is drawn of token representations: their plane of two principal components, layer by layer, and distances: numpy alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairprune_framework.functional.pca import Floats, principal, steadied


@dataclass(frozen=True, kw_only=True)
class Planes:
    """One output of one contrast in L layers, with M drawn tokens of its variants, one variant after the other."""

    before: NDArray[Any]
    """`(L, M, 2)`: coordinates of the tokens in the original model; a component keeps its sign from layer to layer."""
    share: NDArray[Any]
    """`(L, 2)`: share of the variance along each component."""
    distance_before: NDArray[Any]
    """`(L,)`: mean distance between variants at their last tokens, in all dimensions."""
    after: NDArray[Any] | None = None
    """`(L, M, 2)`: tokens of the model after, in the same plane."""
    distance_after: NDArray[Any] | None = None

    @property
    def parts(self) -> dict[str, NDArray[Any]]:
        """Name of a field -> its values, of what there is."""
        return {name: value for name, value in vars(self).items() if value is not None}


PARTS = tuple(each.name for each in fields(Planes))


def planes(before_LRH: NDArray[Any], after_LRH: NDArray[Any] | None, variants: Sequence[Mapping[str, Any]]) -> Planes:
    """The planes of the original model, with the tokens of either.

    Args:
        before_LRH: the tokens of the first variant, then of the second, and so on.
        variants: each with its `tokens` and the `start` of its attribute.

    >>> two = [{"tokens": ["a", "b"], "start": 0}, {"tokens": ["c", "b"], "start": 0}]
    >>> planes(np.array([[[0.0, 0], [3, 0], [0, 0], [3, 4]]]), None, two).distance_before
    array([4.])
    """
    chosen = np.concatenate(drawn_tokens(variants))
    last = np.cumsum([len(variant["tokens"]) for variant in variants]) - 1
    found: dict[str, list[Any]] = {}
    previous: Floats | None = None
    for layer, before_RH in enumerate(before_LRH):
        after_RH = None if after_LRH is None else after_LRH[layer]
        at, then, share = principal(before_RH[chosen], None if after_RH is None else after_RH[chosen])
        signs = steadied(at, previous)
        previous = at * signs
        row: dict[str, Any] = {"before": previous, "share": share, "distance_before": _spread(before_RH[last])}
        if then is not None and after_RH is not None:
            row |= {"after": then * signs, "distance_after": _spread(after_RH[last])}
        for name, value in row.items():
            found.setdefault(name, []).append(value)
    return Planes(**{name: np.asarray(values) for name, values in found.items()})


def drawn_tokens(variants: Sequence[Mapping[str, Any]]) -> list[NDArray[np.bool_]]:
    """Which tokens of each variant are drawn: all but a shared first one.

    >>> drawn_tokens([{"tokens": ["The", "old", "man"], "start": 1}, {"tokens": ["The", "young", "man"], "start": 1}])[0]
    array([False,  True,  True])
    """
    first = {variant["tokens"][0] for variant in variants}
    shared = len(first) == 1 and all(variant["start"] > 0 and len(variant["tokens"]) > 2 for variant in variants)
    return [np.arange(len(variant["tokens"])) >= (1 if shared else 0) for variant in variants]


def _spread(rows_VH: NDArray[Any]) -> float:
    rows = rows_VH.astype(np.float64)
    pairs = [(i, j) for i in range(len(rows)) for j in range(i)]
    return float(np.mean([np.linalg.norm(rows[i] - rows[j]) for i, j in pairs]))
