"""The stage `evaluate`: the original model, then what the plan made of it (or another model), on the same material.

The original is measured whole, masked where a comparison needs both answers at once; then it is let go of and the other one loaded, so that
one model is in memory at a time, unless the original came in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairprune_framework.auditing.batches import compose
from fairprune_framework.errors import UserError
from fairprune_framework.evaluation import exhibits
from fairprune_framework.evaluation import results as evidence
from fairprune_framework.evaluation.cache import Cells
from fairprune_framework.evaluation.fixed_text import TextLoss
from fairprune_framework.evaluation.metrics.contrasts import ContrastMeasure, measure
from fairprune_framework.evaluation.metrics.generation import ARTICLE_PROMPTS, Continuation, first_difference
from fairprune_framework.evaluation.metrics.perplexity import language_cost
from fairprune_framework.evaluation.metrics.sentences import SentenceMeasure
from fairprune_framework.evaluation.sentence_rows import sentence_items, sentence_rows
from fairprune_framework.evaluation.subject import Subject
from fairprune_framework.evaluation.tasks.data import TaskSettings, limits_of, tasks_of
from fairprune_framework.evaluation.tasks.rows import task_rows
from fairprune_framework.evaluation.verdict import Verdict, decide
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.loading import load_model

if TYPE_CHECKING:
    from fairprune_framework.evaluation.tasks.harness import TaskResult
    from fairprune_framework.runs.run import Run

FLOOR_CONTRASTS = 16
"""Contrasts that are measured twice to see the noise of the dtype."""


@dataclass(kw_only=True)
class Measured:
    """All that was measured of one model."""

    contrasts: list[ContrastMeasure]
    sentences: list[SentenceMeasure]
    generations: list[Continuation]
    text: TextLoss
    judged: dict[str, tuple[list[ContrastMeasure], list[SentenceMeasure]]] = field(default_factory=dict)
    tasks: list[TaskResult] = field(default_factory=list)


def evaluate_run(run: Run) -> tuple[evidence.Evaluation, Verdict | None]:
    """Evaluate a run; the verdict is None where there is no plan: one model alone, or one against another.

    After is the saved model where there is one; where the run abstained with a plan, the masked original, so that the reader sees
    what would have happened.
    """
    check(run)
    planned = "plan" in run.record["stages"]
    units = run.plan.sites if planned else {}
    multiplier = run.plan.multiplier if planned else 0.0
    saved = run.folder / "model"
    kept = run.recipe.suite or run.recipe.judge_prompts or run.recipe.against or run.recipe.cells
    cells = Cells(Path(run.recipe.cells or run.folder / "cells") if kept else None, run.notify)
    aligned, judging = run.aligned[0], run.calibration.judging
    budget, encoder, tokenizer = run.micro_batch_tokens, run.encoder, run.tokenizer
    original = Subject(run.model, tokenizer, run.architecture, cells, encoder=encoder, budget=budget, notify=run.notify)
    layers = sorted({site.layer for site in run.architecture.sites.values()})
    run.notify(f"evaluating {len(aligned)} contrasts")
    before = _measured(run, original)
    floor = noise_floor(original, aligned, run.values, before.contrasts)
    masked = original.masked_by(units, multiplier)
    kl: float | None = None
    if any(units.values()):  # the masked original and the smaller model answer alike: `prune` verified it
        cost = language_cost(run.model, judging, change=masked.change)
        before.text, text_after, kl = *cost.losses, cost.kl
    changed = (
        exhibits.After(model=run.model, architecture=run.architecture, change=masked.change) if any(units.values()) else None
    )
    divergences = {measured.id: measured.divergence for measured in before.contrasts}

    after: Measured | None = None
    applied_by = None
    if saved.is_dir() or run.recipe.against:
        applied_by = "removal" if saved.is_dir() else "another model"
        shown = exhibits.collect(run, divergences, changed, ())
        del original, masked, changed
        run.release()
        other = _loaded(run, str(saved) if saved.is_dir() else str(run.recipe.against), tokenizer)
        architecture = recognise(other, run.recipe.architecture)
        subject = Subject(other, tokenizer, architecture, cells, encoder=encoder, budget=budget, notify=run.notify)
        after = _measured(run, subject)
        if {site.layer for site in architecture.sites.values()} != set(layers):
            layers = []
    elif any(units.values()):
        applied_by = "masking"
        after = _measured(run, masked)
        shown = exhibits.collect(run, divergences, changed, ())
    else:
        shown = exhibits.collect(run, divergences, None, ())
    if after is not None and kl is not None:
        after.text = text_after
    return _evaluation(run, before, after, kl, floor, layers, applied_by, shown, planned)


def check(run: Run, planning: bool = False) -> None:
    """Everything about the evaluation that can be wrong with the input, before a model is measured.

    Raises:
        UserError: an unknown task, absent data, a set that may not judge, two things to compare with.
    """
    recipe = run.recipe
    if recipe.against is not None and (planning or "plan" in run.record["stages"] or "plan_file" in run.record):
        raise UserError(
            "--against compares two models, without a plan: `fairprune evaluate A --against B` in a folder of its own"
        )
    if recipe.judge_prompts:
        _ = run.judged
    if recipe.suite:
        from fairprune_framework.evaluation.tasks.data import check_data
        from fairprune_framework.evaluation.tasks.harness import check_tasks

        tasks = tasks_of(recipe.suite)
        limits_of(recipe.task_limit, tasks)
        check_tasks(tasks)
        check_data(tasks, None if recipe.task_data is None else Path(recipe.task_data))


def _loaded(run: Run, name: str, tokenizer: Any) -> Any:
    other, theirs = load_model(name, dtype=run.recipe.dtype, trust_remote_code=run.recipe.trust_remote_code)
    if theirs.get_vocab() != tokenizer.get_vocab():
        raise UserError(
            f"{name} has another tokenizer than {run.recipe.model}: their answers cannot be compared token by token"
        )
    return other.to(run.device)


def _measured(run: Run, subject: Subject) -> Measured:
    aligned = run.aligned[0]
    found = Measured(
        contrasts=subject.contrasts("own", aligned, run.values),
        sentences=subject.sentences("own", aligned),
        generations=subject.generations([*ARTICLE_PROMPTS, *run.recipe.generate]),
        text=subject.documents("calibration", run.calibration.judging),
    )
    for name, (contrasts, these, _) in run.judged.items():
        from fairprune_framework.contrasts.alignment import vocabularies

        values = {category: len(known) for category, known in vocabularies(contrasts).items()}
        found.judged[name] = (subject.contrasts(name, these, values, frozenset()), subject.sentences(name, these))
    tasks = tasks_of(run.recipe.suite)
    limits = limits_of(run.recipe.task_limit, tasks)
    for task in tasks:
        found.tasks += subject.task(
            TaskSettings(
                task=task,
                limit=limits[task],
                data=None if run.recipe.task_data is None else Path(run.recipe.task_data),
                chat_template=run.recipe.chat_template,
                micro_batch_tokens=subject.budget,
            )
        )
    return found


def noise_floor(
    subject: Subject, aligned: Sequence[Any], values: Mapping[str, int], measured: Sequence[ContrastMeasure]
) -> dict[str, float]:
    """How far the divergence moves when nothing changes but which texts share a forward: the noise of the dtype.

    Up to 16 contrasts are measured one by one. `largest` is the largest difference of one of them, relative to the mean divergence; no
    change below it can be told from rounding.
    """
    chosen = list(aligned)[:: max(1, len(aligned) // FLOOR_CONTRASTS)][:FLOOR_CONTRASTS]
    known = {one.id: one.divergence for one in measured}
    with subject.change():
        alone = measure(subject.model, subject.architecture, list(compose(chosen, values, 1)), taps=frozenset())
    mean = sum(known.values()) / max(len(known), 1)
    off = [abs(one.divergence - known[one.id]) for one in alone]
    return {"contrasts": len(off), "largest": max(off) / mean if mean > 0 else 0.0, "mean_divergence": mean}


def _evaluation(
    run: Run,
    before: Measured,
    after: Measured | None,
    kl: float | None,
    floor: Mapping[str, float],
    layers: Sequence[int],
    applied_by: str | None,
    shown: exhibits.Exhibits,
    planned: bool,
) -> tuple[evidence.Evaluation, Verdict | None]:
    seed = run.recipe.seed
    items = evidence.items_of(run.aligned[0], before.contrasts, after.contrasts if after else None)
    sentences = sentence_items(run.prompts[0], before.sentences, after.sentences if after else None)
    rows = [_with_floor(row, floor) for row in evidence.contrast_rows(items, layers, seed)]
    rows += sentence_rows(sentences, seed)
    rows += evidence.language_rows(before.text, after.text if after else None, kl, seed)
    samples: list[dict[str, Any]] = []
    for name, (contrasts, these, _) in run.judged.items():
        first, second = before.judged[name], after.judged[name] if after else None
        found = evidence.items_of(these, first[0], second[0] if second else None)
        for row in evidence.contrast_rows(found, [], seed):
            if row.metric == "next-token-divergence":
                rows.append(replace(_with_floor(row, floor), metric=f"{name}/{row.metric}"))
        texts = sentence_items(contrasts, first[1], second[1] if second else None)
        rows += sentence_rows(texts, seed, f"{name}/")
        samples += _samples(name, [one | two for one, two in zip(found, texts, strict=True)])
    for place, result in enumerate(before.tasks):
        other = after.tasks[place] if after else None
        rows += task_rows(result, other, seed)
        samples += _task_samples(result, other)
    generations = _side_by_side(run, before.generations, after.generations if after else None)
    evaluation = evidence.Evaluation(
        rows=tuple(rows),
        items=tuple(one | two for one, two in zip(items, sentences, strict=True)),
        samples=tuple(samples),
        generations=tuple(generations),
        n_unequal=sum(not measured.equal_length for measured in before.contrasts),
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
    return evaluation, judge(run, items) if planned else None


def _with_floor(row: evidence.Row, floor: Mapping[str, float]) -> evidence.Row:
    """A small effect says how far rounding alone reaches."""
    small = row.change is not None and row.layer is None and abs(row.change) < 10 * floor["largest"]
    if not (small and row.metric.endswith("next-token-divergence")):
        return row
    text = f"noise floor of the dtype: {floor['largest']:.1e} of the mean divergence"
    return replace(row, note=text if row.note is None else f"{row.note}; {text}")


_METRICS = ("next-token-divergence", "sequence-gap", "stereotype-preference")


def _samples(name: str, items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        _sample(
            name, item["id"], item["category"], item["template_id"], metric, item[f"{metric}_before"], item[f"{metric}_after"]
        )
        for item in items
        for metric in _METRICS
        if item[f"{metric}_before"] is not None
    ]


def _task_samples(before: TaskResult, after: TaskResult | None) -> list[dict[str, Any]]:
    return [
        _sample(before.task, str(item["id"]), item["category"], item["cluster"], metric, item[metric], other and other[metric])
        for place, item in enumerate(before.items)
        for other in [after.items[place] if after else None]
        for metric in before.metrics
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


def judge(run: Run, items: list[dict[str, Any]]) -> Verdict:
    """The verdict on held-out contrasts without controls."""
    heldout = [item for item in items if item["split"] == "heldout" and not item["control"]]
    guard = run.record.get("guard")
    return decide(
        evidence.paired(heldout, "next-token-divergence", run.recipe.seed),
        applied=not run.record.get("abstained", True),
        why_not=run.record.get("abstained_because"),
        guard_held=guard is None or bool(guard["held"]),
    )


def _side_by_side(run: Run, before: Sequence[Continuation], after: Sequence[Continuation] | None) -> list[dict[str, Any]]:
    prompts = [*ARTICLE_PROMPTS, *run.recipe.generate]
    alone = {"after": None, "first_difference": None}
    return [
        {"prompt": prompt, "before": first.text}
        | (alone if after is None else {"after": after[place].text, "first_difference": first_difference(first, after[place])})
        for place, (prompt, first) in enumerate(zip(prompts, before, strict=True))
    ]
