"""What masking units does to contrasts and to text: measured, and compared with the original model. No weight changes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from fairprune_framework.api.types import Scaling
from fairprune_framework.auditing.batches import compose
from fairprune_framework.contrasts.alignment import AlignedContrast
from fairprune_framework.evaluation.draws import item_of, together
from fairprune_framework.evaluation.metrics.contrasts import measure_contrasts
from fairprune_framework.evaluation.metrics.names import DIVERGENCE, IDEALS, SEQUENCE_GAP, SHARED_PREFERENCE
from fairprune_framework.evaluation.metrics.perplexity import text_loss
from fairprune_framework.evaluation.metrics.sentences import measure_sentences
from fairprune_framework.functional.paired_bootstrap import RESAMPLES, PairedChange, paired_change
from fairprune_framework.functional.shared_tokens import scored_places
from fairprune_framework.models.architecture import Architecture
from fairprune_framework.surgery.masking import masked

Units = Mapping[str, Sequence[int]]
"""site -> indices of its units."""


@dataclass(frozen=True, kw_only=True)
class MaskedMeasurement:
    """One model with some units masked."""

    values: Mapping[str, float]
    """id of a contrast -> its metric."""
    perplexity: float | None
    """Of the documents; None where none were given."""
    masking_ms: float = 0.0
    """Milliseconds until the mask was in place."""


class MaskedEvaluator:
    """Measures one metric of contrasts, and perplexity of documents, with units masked. The original is measured once.

    Args:
        contrasts: what is measured; demographic ones and controls.
        values: category -> number of values, as the batches need it.
        documents: token ids of texts; at least two tokens each.
        metric: one of `IDEALS`; every contrast must have it, see `measurable`.
        max_tokens: padded tokens per forward.
        share_up_to: contrasts whose texts are at most so long are computed with shared prefixes: see `prefix_sharing`.
        sentences: id -> the sentence that a contrast stands in: templates that share one are one draw of an interval.
        seed: of the intervals.
    """

    def __init__(
        self,
        model: nn.Module,
        architecture: Architecture,
        contrasts: Sequence[AlignedContrast],
        values: Mapping[str, int],
        *,
        documents: Sequence[Sequence[int]] = (),
        metric: str = DIVERGENCE,
        max_tokens: int = 512,
        share_up_to: int = 0,
        sentences: Mapping[str, str] | None = None,
        seed: int = 0,
    ) -> None:
        self.contrasts, self.metric = tuple(contrasts), metric
        self._model, self._architecture = model, architecture
        self._batches = tuple(compose(self.contrasts, values, max_tokens, share_up_to=share_up_to))
        self._documents, self._max_tokens, self._seed = tuple(documents), max_tokens, seed
        self._sentences = sentences or {}
        self._categories = {contrast.id: contrast.category for contrast in self.contrasts}

    @cached_property
    def original(self) -> MaskedMeasurement:
        """The model without a mask."""
        return self._measured({}, 0.0, None)

    def measure(
        self, units: Units, factor: Scaling = 0.0, *, category: str | None = None, perplexity: bool = True
    ) -> MaskedMeasurement:
        """Mask units and measure.

        Args:
            units: their activations are multiplied by `factor`; without any it is the original.
            category: the contrasts of this one alone.
            perplexity: measure that too, where there are documents.
        """
        if any(len(chosen) for chosen in units.values()):
            return self._measured(units, factor, category, perplexity)
        values = self.original.values
        if category is not None:
            values = {name: value for name, value in values.items() if self._categories[name] == category}
        return MaskedMeasurement(values=values, perplexity=self.original.perplexity)

    def change(
        self, after: MaskedMeasurement, *, control: bool = False, category: str | None = None, resamples: int = RESAMPLES
    ) -> PairedChange | None:
        """The paired change against the original, with its interval over templates; None where no contrast is of that kind."""
        ids = [c.id for c in self.contrasts if c.control is control and category in (None, c.category)]
        return self._paired(ids, self.original.values, after.values, resamples) if ids else None

    def mean(self, measured: MaskedMeasurement) -> float:
        """Over contrasts, then templates, then categories, as in the rows of an evaluation; a share over templates alone."""
        return self._paired(list(measured.values), measured.values, measured.values, 0).before

    def means(self, measured: MaskedMeasurement) -> dict[str, float]:
        """category -> the mean over its contrasts, then templates."""
        found: dict[str, list[str]] = {}
        for contrast in self.contrasts:
            if contrast.id in measured.values:
                found.setdefault(contrast.category, []).append(contrast.id)
        return {
            category: self._paired(ids, measured.values, measured.values, 0).before for category, ids in sorted(found.items())
        }

    def cost(self, after: MaskedMeasurement) -> float:
        """Relative increase of perplexity.

        Raises:
            ValueError: the evaluator was given no documents.
        """
        before = self.original.perplexity
        if before is None or after.perplexity is None:
            raise ValueError("a cost needs documents: MaskedEvaluator(..., documents=...)")
        return after.perplexity / before - 1

    def _paired(
        self, ids: Sequence[str], before: Mapping[str, float], after: Mapping[str, float], resamples: int
    ) -> PairedChange:
        chosen = set(ids)
        contrasts = [contrast for contrast in self.contrasts if contrast.id in chosen]
        pooled = IDEALS[self.metric] == 0.5  # a share is over all pairs, as in the rows of an evaluation
        return paired_change(
            [before[contrast.id] for contrast in contrasts],
            [after[contrast.id] for contrast in contrasts],
            ["" if pooled else contrast.category for contrast in contrasts],
            [f"{contrast.category}/{contrast.template_id}" for contrast in contrasts],
            together=together([item_of(contrast, self._sentences) for contrast in contrasts]),
            ideal=IDEALS[self.metric],
            seed=self._seed,
            resamples=resamples,
        )

    def _measured(self, units: Units, factor: Scaling, category: str | None, perplexity: bool = True) -> MaskedMeasurement:
        began = time.perf_counter()
        with masked(self._model, self._architecture, units, factor):
            milliseconds = (time.perf_counter() - began) * 1000
            return MaskedMeasurement(
                values=self._metric_values(category),
                perplexity=text_loss(self._model, self._documents, self._max_tokens).perplexity
                if self._documents and perplexity
                else None,
                masking_ms=milliseconds,
            )

    def _metric_values(self, category: str | None) -> dict[str, float]:
        """id -> the metric of each contrast, of the model as it is now."""
        if self.metric == DIVERGENCE:
            batches = [batch for batch in self._batches if category is None or category in batch.categories]
            measured = measure_contrasts(self._model, self._architecture, batches, taps=frozenset())
            return {one.id: one.divergence for one in measured if category in (None, self._categories[one.id])}
        contrasts = [contrast for contrast in self.contrasts if category in (None, contrast.category)]
        if self.metric == SHARED_PREFERENCE:
            return self._shared_preferences(contrasts)
        sentences = measure_sentences(self._model, contrasts, max_tokens=self._max_tokens)
        if self.metric == SEQUENCE_GAP:
            return {one.id: one.gap for one in sentences}
        stereotyping = {contrast.id: contrast.stereotyping for contrast in contrasts}
        preferred = {one.id: one.prefers(index, 1 - index) for one in sentences if (index := stereotyping[one.id]) is not None}
        return {id: float(yes) for id, yes in preferred.items() if yes is not None}

    def _shared_preferences(self, contrasts: Sequence[AlignedContrast]) -> dict[str, float]:
        wanted = {contrast.id: contrast.stereotyping for contrast in contrasts}
        batches = [batch for batch in self._batches if set(batch.ids) & wanted.keys()]
        measured = measure_contrasts(self._model, self._architecture, batches, taps=frozenset(), sentences=True)
        shared = {one.id: one.shared_log_probabilities for one in measured}
        return {id: float(shared[id][index] > shared[id][1 - index]) for id, index in wanted.items() if index is not None}


def measurable(metric: str, contrast: AlignedContrast) -> bool:
    """The contrast has the metric, one of `IDEALS`."""
    if metric == SHARED_PREFERENCE:
        return contrast.stereotyping is not None and bool(scored_places([one.ids for one in contrast.variants])[0])
    return metric in (DIVERGENCE, SEQUENCE_GAP) or (contrast.stereotyping is not None and contrast.same_start)
