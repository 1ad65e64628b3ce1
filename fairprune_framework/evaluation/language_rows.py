"""Rows of the language metrics: perplexity, with an interval over documents, and KL to the original."""

from __future__ import annotations

from dataclasses import replace

from fairprune_framework.evaluation.metrics.names import KL_TO_ORIGINAL, PERPLEXITY
from fairprune_framework.evaluation.metrics.perplexity import TextLoss, perplexity_change
from fairprune_framework.evaluation.rows import ResultRow, RowKey


def language_rows(before: TextLoss, after: TextLoss | None, kl: float | None, seed: int) -> list[ResultRow]:
    """The rows on the judging half of the calibration text.

    Args:
        after: None where one model alone was measured.
        kl: mean over tokens of KL(before || after), nats; None where the answers were not compared.
    """
    key = RowKey(metric=PERPLEXITY, unit="perplexity per token")
    if after is None:
        return [ResultRow.alone(key, before.perplexity, n=len(before.nll))]
    row = ResultRow.of_change(key, perplexity_change(before, after, seed), clusters_are="documents")
    row = replace(row, before=before.perplexity, after=after.perplexity, change=after.perplexity / before.perplexity - 1)
    if kl is None:
        return [row]
    moved = ResultRow.alone(RowKey(metric=KL_TO_ORIGINAL, unit="nats per token"), 0.0, n=len(before.nll))
    return [row, replace(moved, after=kl, difference=kl)]
