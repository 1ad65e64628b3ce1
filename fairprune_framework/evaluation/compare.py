"""One model beside another on the same material: all that is measured of each, and the rows that compare them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fairprune_framework.auditing.batches import compose
from fairprune_framework.contrasts.alignment import AlignedContrast, vocabularies
from fairprune_framework.contrasts.prompts import JudgingSet, PromptSet
from fairprune_framework.contrasts.sentences import sentences_of as sentences_in
from fairprune_framework.evaluation import exhibits
from fairprune_framework.evaluation.continuation_rows import continuation_rows
from fairprune_framework.evaluation.contrast_rows import contrast_rows, items_of
from fairprune_framework.evaluation.group_rows import group_rows
from fairprune_framework.evaluation.language_rows import language_rows
from fairprune_framework.evaluation.metrics.contrasts import ContrastMeasure, measure_contrasts
from fairprune_framework.evaluation.metrics.generation import ARTICLE_PROMPTS, Continuation, first_difference
from fairprune_framework.evaluation.metrics.movement import MovementReader
from fairprune_framework.evaluation.metrics.names import DIVERGENCE, PREFERENCES, SEQUENCE_GAP
from fairprune_framework.evaluation.metrics.outputs import OutputReader
from fairprune_framework.evaluation.metrics.perplexity import TextLoss
from fairprune_framework.evaluation.metrics.sentences import SentenceMeasure
from fairprune_framework.evaluation.results import Evaluation
from fairprune_framework.evaluation.rows import ResultRow
from fairprune_framework.evaluation.sentence_rows import sentence_items, sentence_rows
from fairprune_framework.evaluation.specificity_rows import specificity_rows
from fairprune_framework.evaluation.subject import Subject
from fairprune_framework.evaluation.tasks import decisions
from fairprune_framework.evaluation.tasks.data import TaskSettings, limits_of, tasks_of
from fairprune_framework.evaluation.tasks.result import TaskResult
from fairprune_framework.evaluation.tasks.rows import task_rows
from fairprune_framework.recipes.recipe import Recipe

FLOOR_CONTRASTS = 16
"""Contrasts, at least, that are measured twice to see the noise of the dtype."""


@dataclass(kw_only=True)
class Measured:
    """All that was measured of one model."""

    contrasts: list[ContrastMeasure]
    sentences: list[SentenceMeasure]
    generations: list[Continuation]
    text: TextLoss
    judged: dict[str, tuple[list[ContrastMeasure], list[SentenceMeasure]]] = field(default_factory=dict)
    tasks: list[TaskResult] = field(default_factory=list)
    sentiments: Mapping[str, list[list[float]]] = field(default_factory=dict)
    """Of sampled continuations, by contrast and variant; empty: not asked for."""


@dataclass(frozen=True, kw_only=True)
class Material:
    """What both models are measured on."""

    recipe: Recipe
    prompts: PromptSet
    judged: Mapping[str, JudgingSet]
    documents: Sequence[Sequence[int]]
    """The judging half of the calibration text."""

    @property
    def aligned(self) -> tuple[AlignedContrast, ...]:
        """The contrasts of the set, legitimate differences last."""
        return (*self.prompts.aligned, *self.prompts.legitimate)

    @property
    def written_on(self) -> list[AlignedContrast]:
        """The contrasts of which continuations are sampled."""
        return [one for one in self.prompts.aligned if one.split in (None, "heldout")]

    @property
    def continued(self) -> list[str]:
        """Prompts that are continued."""
        return [*ARTICLE_PROMPTS, *self.recipe.generate]


def measured(
    subject: Subject,
    material: Material,
    *,
    movements: MovementReader | None = None,
    outputs: OutputReader | None = None,
    text: TextLoss | None = None,
) -> Measured:
    """Measure one model on everything.

    Args:
        movements: reads its neurons in the forward of the contrasts.
        outputs: keeps the outputs of its contrasts in that forward.
        text: the model's loss on the judging text, where it is known.
    """
    recipe = material.recipe
    own = subject.contrasts("own", material.aligned, material.prompts.values, movements=movements, outputs=outputs)
    result = Measured(
        contrasts=own,
        sentences=sentences_of(own, material.aligned),
        generations=subject.generations(material.continued),
        text=text or subject.documents("calibration", material.documents),
    )
    for name, judging in material.judged.items():
        values = {category: len(known) for category, known in vocabularies(judging.contrasts).items()}
        found = subject.contrasts(name, judging.aligned, values, frozenset())
        result.judged[name] = (found, sentences_of(found, judging.aligned))
    tasks = tasks_of(recipe.suite)
    limits = limits_of(recipe.task_limit, tasks)
    for task in tasks:
        result.tasks += subject.task(
            TaskSettings(
                task=task,
                limit=limits[task],
                data=None if recipe.task_data is None else Path(recipe.task_data),
                chat_template=recipe.chat_template,
                micro_batch_tokens=subject.max_tokens,
            )
        )
    if recipe.continuations:
        result.sentiments = subject.sentiments(material.written_on, recipe.seed)
    if recipe.decisions is not None:
        result.tasks += subject.task(
            TaskSettings(
                task="decisions",
                data=decisions.path_of(recipe.decisions),
                chat_template=recipe.chat_template,
                micro_batch_tokens=subject.max_tokens,
            )
        )
    return result


def sentences_of(measured: Sequence[ContrastMeasure], aligned: Sequence[AlignedContrast]) -> list[SentenceMeasure]:
    """The log-probabilities that were measured with contrasts, in the order of the set."""
    known = {one.id: one for one in measured}
    return [
        SentenceMeasure(
            id=one.id,
            log_probabilities=known[one.id].log_probabilities,
            shared=known[one.id].shared_log_probabilities,
            shared_tokens=known[one.id].shared_tokens,
            whole=one.same_start,
            equal_length=one.equal_length,
        )
        for one in aligned
    ]


def noise_floor(
    subject: Subject,
    aligned: Sequence[AlignedContrast],
    values: Mapping[str, int],
    measured: Sequence[ContrastMeasure],
    first: Sequence[AlignedContrast] = (),
    outputs: OutputReader | None = None,
) -> dict[str, float]:
    """How far the divergence moves when nothing changes but which texts share a forward: the noise of the dtype.

    Up to 16 contrasts, or all that must be computed again, are measured one by one. `largest` is the largest difference of one of them,
    relative to the mean divergence; no change below it can be told from rounding.

    Args:
        first: those whose outputs are still wanted.
        outputs: keeps them.
    """
    others = [one for one in list(aligned)[:: max(1, len(aligned) // FLOOR_CONTRASTS)] if one not in first]
    chosen = [*first, *others[: max(0, FLOOR_CONTRASTS - len(first))]]
    known = {one.id: one.divergence for one in measured}
    with subject.change():
        alone = measure_contrasts(
            subject.model, subject.architecture, list(compose(chosen, values, 1)), taps=frozenset(), outputs=outputs
        )
    mean = sum(known.values()) / max(len(known), 1)
    off = [abs(one.divergence - known[one.id]) for one in alone]
    return {"contrasts": len(off), "largest": max(off) / mean if mean > 0 else 0.0, "mean_divergence": mean}


def compared(
    material: Material,
    before: Measured,
    after: Measured | None,
    kl: float | None,
    floor: Mapping[str, float],
    layers: Sequence[int],
    applied_by: str | None,
    shown: exhibits.Exhibits,
) -> Evaluation:
    """The rows, items and samples of an evaluation.

    Args:
        after: None where one model alone was measured.
        kl: mean divergence of the two models' answers on the judging text, nats per token.
        floor: of `noise_floor`.
        layers: those that both models have.
        applied_by: how `after` was made.
    """
    seed = material.recipe.seed
    texts = list(material.prompts.contrasts)
    stand_in = material.prompts.sentences
    items = items_of(material.aligned, before.contrasts, after.contrasts if after else None, stand_in)
    sentences = sentence_items(texts, before.sentences, after.sentences if after else None, stand_in)
    rows = [_with_floor(row, floor) for row in contrast_rows(items, layers, seed)]
    joined = [one | two for one, two in zip(items, sentences, strict=True)]
    rows += specificity_rows(items, seed)
    rows += sentence_rows(sentences, seed)
    rows += group_rows(joined, seed)
    if before.sentiments:
        heard = {"before": before.sentiments, "after": after.sentiments if after else {}}
        joined = [item | {f"sentiment_{when}": found.get(item["id"]) for when, found in heard.items()} for item in joined]
        rows += continuation_rows(joined, seed)
    rows += language_rows(before.text, after.text if after else None, kl, seed)
    samples: list[dict[str, Any]] = []
    for name, judging in material.judged.items():
        first, second = before.judged[name], after.judged[name] if after else None
        stand_in = sentences_in(judging.contrasts)
        judged_items = items_of(judging.aligned, first[0], second[0] if second else None, stand_in)
        for row in contrast_rows(judged_items, [], seed):
            if row.metric == DIVERGENCE:
                rows.append(replace(_with_floor(row, floor), metric=f"{name}/{row.metric}"))
        judged_sentences = sentence_items(judging.contrasts, first[1], second[1] if second else None, stand_in)
        rows += sentence_rows(judged_sentences, seed, f"{name}/")
        samples += _samples(name, [one | two for one, two in zip(judged_items, judged_sentences, strict=True)])
    for index, result in enumerate(before.tasks):
        other = after.tasks[index] if after else None
        rows += task_rows(result, other, seed)
        samples += _task_samples(result, other)
    generations = _side_by_side(material.continued, before.generations, after.generations if after else None)
    return Evaluation(
        rows=tuple(rows),
        items=tuple(joined),
        samples=tuple(samples),
        generations=tuple(generations),
        n_unequal=sum(not one.equal_length for one in before.contrasts),
        applied_by=applied_by,
        exhibits=replace(shown, described={**shown.described, "generations": generations}),
        extra={
            "noise_floor": dict(floor),
            "tasks": {
                result.task: {"version": result.version, "items": len(result.items), "hash": result.hash}
                for result in before.tasks
            },
        },
    )


def _with_floor(row: ResultRow, floor: Mapping[str, float]) -> ResultRow:
    """A small effect says how far rounding alone reaches."""
    small = row.change is not None and row.layer is None and abs(row.change) < 10 * floor["largest"]
    if not (small and row.metric.endswith(DIVERGENCE)):
        return row
    return row.noted(f"noise floor of the dtype: {floor['largest']:.1e} of the mean divergence")


_SAMPLED = (DIVERGENCE, SEQUENCE_GAP, *PREFERENCES)


def _samples(name: str, items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        _sample(
            name, item["id"], item["category"], item["template_id"], metric, item[f"{metric}_before"], item[f"{metric}_after"]
        )
        for item in items
        for metric in _SAMPLED
        if item[f"{metric}_before"] is not None
    ]


def _task_samples(before: TaskResult, after: TaskResult | None) -> list[dict[str, Any]]:
    return [
        _sample(before.task, str(item["id"]), item["category"], item["cluster"], metric, item[metric], other and other[metric])
        for index, item in enumerate(before.items)
        for other in [after.items[index] if after else None]
        for metric in before.metrics
        if item[metric] is not None or (other and other[metric] is not None)
    ]


def _sample(
    source: str, identity: str, category: str | None, cluster: str, metric: str, before: Any, after: Any
) -> dict[str, Any]:
    return {
        "source": source,
        "id": identity,
        "category": category,
        "cluster": cluster,
        "metric": metric,
        "before": _numbers(before),
        "after": _numbers(after),
    }


def _numbers(value: Any) -> list[float | None] | None:
    """What lm-eval aggregates of an item: one number or several; null where it is no number."""
    if value is None:
        return None
    parts = value if isinstance(value, list) else [value]
    return [float(part) if isinstance(part, (int, float)) else None for part in parts]


def _side_by_side(
    prompts: Sequence[str], before: Sequence[Continuation], after: Sequence[Continuation] | None
) -> list[dict[str, Any]]:
    alone = {"after": None, "first_difference": None}
    return [
        {"prompt": prompt, "before": first.text}
        | (alone if after is None else {"after": after[index].text, "first_difference": first_difference(first, after[index])})
        for index, (prompt, first) in enumerate(zip(prompts, before, strict=True))
    ]
