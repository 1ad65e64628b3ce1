"""Probes: what masking a choice of units would do, measured on what may select, and on nothing else.

Divergence on contrasts of the split `select`, cost on the scoring half of the calibration text. The original is measured once.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property

import torch
from torch import nn

from fairprune_framework.api.interfaces import Probe
from fairprune_framework.api.types import Choice, Measurement
from fairprune_framework.auditing.micro_batch import MicroBatch
from fairprune_framework.contrasts.alignment import AlignedContrast
from fairprune_framework.evaluation.metrics.contrasts import measure
from fairprune_framework.evaluation.metrics.perplexity import perplexity
from fairprune_framework.functional.paired_bootstrap import paired_change
from fairprune_framework.models.architecture import Architecture
from fairprune_framework.surgery.masking import masked


class Prober:
    """Makes probes for the contrasts of all categories, or of one.

    Args:
        contrasts: of the split `select`, no controls; the same as feed the scores.
        batches: micro-batches that hold exactly these contrasts.
        documents: the scoring half of the calibration text.
        factor: what a probe multiplies units by, where the choice names no factor of its own.
    """

    def __init__(
        self,
        model: nn.Module,
        architecture: Architecture,
        contrasts: Sequence[AlignedContrast],
        batches: Sequence[MicroBatch],
        documents: Sequence[Sequence[int]],
        factor: float = 0.0,
    ) -> None:
        self._model, self._architecture, self._factor = model, architecture, factor
        self._contrasts = {contrast.id: contrast for contrast in contrasts}
        self._batches, self._documents = tuple(batches), tuple(documents)

    def probe(self, category: str | None = None) -> Probe:
        """A probe that looks at the contrasts of one category, or of all."""
        batches = [batch for batch in self._batches if category is None or category in batch.categories]

        def measured(choice: Choice) -> Measurement:
            units = {name: chosen.tolist() for name, chosen in choice.units.items() if len(chosen)}
            factor = self._factor if choice.factor is None else choice.factor
            change = masked(self._model, self._architecture, units, factor) if units else nullcontext()
            with change:
                found = measure(self._model, self._architecture, batches, taps=frozenset())
                after = perplexity(self._model, self._documents) if units else self._before
            chosen = [m for m in found if category in (None, self._contrasts[m.id].category)]
            cost = after / self._before - 1
            return Measurement(
                divergence=self._macro([m.id for m in chosen], [m.divergence for m in chosen]),
                cost=cost,
                retention=1 / (1 + cost),
            )

        return measured

    @cached_property
    def _before(self) -> float:
        return perplexity(self._model, self._documents)

    def _macro(self, ids: Sequence[str], values: Sequence[float]) -> float:
        """Contrasts, then templates, then categories, as `next-token-divergence` is averaged everywhere."""
        contrasts = [self._contrasts[name] for name in ids]
        categories, templates = [c.category for c in contrasts], [c.template_id for c in contrasts]
        return paired_change(values, values, categories, templates, resamples=0).before


def unit_choice(units: dict[str, list[int]], factor: float | None = None) -> Choice:
    """A choice from plain indices."""
    return Choice(units={name: torch.tensor(found, dtype=torch.long) for name, found in units.items()}, factor=factor)
