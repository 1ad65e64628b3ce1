"""An audit's result with its clusters of templates weighted, or drawn with replacement: what a scorer would see of other templates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from fairprune_framework.auditing.reductions import weighted_over
from fairprune_framework.auditing.statistics import CONTRASTS, Statistics


def weighted(statistics: Statistics, weights_GB: Tensor) -> Statistics:
    """Statistics in which each cluster counts by its weight: zeros leave clusters out, so that a half can choose for the other.

    Args:
        weights_GB: (G, B) float64, for B hashed clusters of G categories. Sums of controls and of calibration text stay as they are.

    Raises:
        ValueError: the audit kept no clusters (no policy declared `Needs.replicates`).
    """
    if not statistics.cluster_counts:
        raise ValueError("the audit kept no clusters: no policy had declared replicates")
    sums = {key: weighted_over(key, value, weights_GB) for key, value in statistics.clustered.items()}
    counts = tuple(int(count) for count in (weights_GB * torch.tensor(statistics.cluster_counts)).sum(1))
    return replace(
        statistics,
        sums={**statistics.sums, **sums},
        counts={**statistics.counts, CONTRASTS: counts},
        clustered={},
        cluster_counts=(),
    )


def resampled(statistics: Statistics, replicates: int, generator: torch.Generator) -> Iterator[Statistics]:
    """Bootstrap over clusters: statistics of which each category's clusters were drawn with replacement, one set in memory at a time.

    Sums of controls and of calibration text stay as they are. Clusters without contrasts are not drawn.

    Raises:
        ValueError: the audit kept no clusters (no policy declared `Needs.replicates`).
    """
    counts_GB = torch.tensor(statistics.cluster_counts)
    for _ in range(replicates):
        weights_GB = torch.zeros(counts_GB.shape, dtype=torch.float64)
        for group, counts in enumerate(counts_GB):
            filled = counts.nonzero().flatten()
            if len(filled):
                drawn = filled[torch.randint(len(filled), (len(filled),), generator=generator)]
                weights_GB[group] = torch.bincount(drawn, minlength=len(counts)).double()
        yield weighted(statistics, weights_GB)
