"""Principal components of token representations: numpy alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def principal(before_MH: NDArray[Any], after_MH: NDArray[Any] | None) -> tuple[Floats, Floats | None, Floats]:
    """The first two principal components of the rows of `before_MH`, and `after_MH` seen in the same plane.

    By the Gram matrix `(M, M)`, since rows are tens and columns thousands. Signs are arbitrary: see `steadied`.

    Returns:
        `(M, 2)` float64, the same for after, and the share of the variance of `before_MH` along each, `(2,)`.
    """
    before = before_MH.astype(np.float64)
    center_H = before.mean(0)
    before = before - center_H
    gram = before @ before.T
    values, vectors = np.linalg.eigh(gram)
    top = np.argsort(values)[::-1][:2]
    if len(top) < 2:
        return np.zeros((len(before), 2)), None if after_MH is None else np.zeros((len(before), 2)), np.zeros(2)
    strength = np.sqrt(np.maximum(values[top], 0.0))
    total = max(float(np.maximum(values, 0.0).sum()), np.finfo(np.float64).tiny)
    rounding = 16 * len(before) * np.finfo(np.float64).eps * values[top[0]]
    along = vectors[:, top] / np.where(values[top] > max(rounding, 1e-60), strength, np.inf)  # a flat direction stays at 0
    after = None if after_MH is None else (after_MH.astype(np.float64) - center_H) @ (before.T @ along)
    return gram @ along, after, strength**2 / total


def steadied(coordinates_M2: Floats, previous_M2: Floats | None) -> Floats:
    """Signs `(2,)` that turn each component so that it resembles the previous layer's; the first so that its largest is positive."""
    if previous_M2 is None:
        largest = coordinates_M2[np.abs(coordinates_M2).argmax(0), np.arange(2)]
        return np.where(largest < 0, -1.0, 1.0)
    return np.where((coordinates_M2 * previous_M2).sum(0) < 0, -1.0, 1.0)
