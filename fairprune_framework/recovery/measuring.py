"""What a recovery training did: perplexity of the original, the pruned and the finetuned model, and the verdict of the last on the first.

Perplexity is measured on text that was not trained on: the held-out part of the user's text, and the judging half of the run's calibration
text. Intervals are paired, over texts. The verdict is that of `evaluate`, of the original against the finetuned model, with the guard's
limit on the judging text. Its null are the random sets of the run (as many neurons, matched by layer and activation norm), masked in the
original: they were not trained afterwards, so that the verdict is about pruning and training together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from fairprune_framework.errors import FairpruneError
from fairprune_framework.evaluation.cache import MeasurementCache
from fairprune_framework.evaluation.compare import Material, compared, measured, noise_floor
from fairprune_framework.evaluation.exhibits import Exhibits
from fairprune_framework.evaluation.judgement import verdict_inputs
from fairprune_framework.evaluation.metrics.names import LANGUAGE_METRICS
from fairprune_framework.evaluation.metrics.perplexity import TextLoss, perplexity, perplexity_change, text_loss
from fairprune_framework.evaluation.results import Evaluation
from fairprune_framework.evaluation.subject import Subject
from fairprune_framework.evaluation.verdict import Verdict, verdict_of
from fairprune_framework.functional.bootstrap import StatisticChange, change_of
from fairprune_framework.functional.paired_bootstrap import BOUND_LEVEL
from fairprune_framework.models.architecture import recognise
from fairprune_framework.recovery.text import RecoveryText
from fairprune_framework.runs.run import Run
from fairprune_framework.stages.evaluate import random_sets_of, share_up_to
from fairprune_framework.utilities.wording import number_of

MODELS = ("original", "pruned", "finetuned")
PAIRS = (("original", "pruned"), ("pruned", "finetuned"), ("original", "finetuned"))
HELD_OUT, JUDGING = "held-out text", "judging text"
NULL = (
    "random sets of the run, of as many neurons, matched by layer and activation norm, masked in the original and not trained "
    "afterwards: the verdict is about pruning and training together"
)

Losses = dict[str, TextLoss]
"""Text -> loss of one model."""


def texts_of(run: Run, text: RecoveryText) -> dict[str, tuple[Sequence[Sequence[int]], Sequence[int]]]:
    """What is measured on: name -> documents, and of each the text that it is a part of."""
    judging = run.calibration.judging
    found: dict[str, tuple[Sequence[Sequence[int]], Sequence[int]]] = {JUDGING: (judging, range(len(judging)))}
    return ({HELD_OUT: (text.heldout, text.texts)} if text.heldout else {}) | found


def losses_of(run: Run, model: nn.Module, text: RecoveryText) -> Losses:
    """Of one model on all that is measured on.

    Raises:
        FairpruneError: a perplexity is larger than any number.
    """
    texts = texts_of(run, text)
    found = {name: text_loss(model, documents, run.micro_batch_tokens) for name, (documents, _) in texts.items()}
    for name, loss in found.items():
        if math.isinf(loss.perplexity):
            raise FairpruneError(f"the perplexity on {name} is larger than any number: the model does not answer such text")
    return found


def perplexities(run: Run, text: RecoveryText, losses: Mapping[str, Losses]) -> dict[str, Any]:
    """Text -> perplexity of each model, and the relative changes with intervals over texts; an interval is null below 8 of them.

    Args:
        losses: of each of `MODELS`.
    """
    found: dict[str, Any] = {}
    for name, (documents, groups) in texts_of(run, text).items():
        rows: dict[str, Any] = {model: losses[model][name].perplexity for model in MODELS}
        changes = {}
        for first, second in PAIRS:
            before, after = losses[first][name], losses[second][name]
            b, a = (np.stack([loss.nll, loss.tokens], 1) for loss in (before, after))
            changes[f"{first} -> {second}"] = _change(change_of(b, a, groups, perplexity, seed=run.recipe.seed))
        tokens = sum(losses["original"][name].tokens)
        found[name] = rows | {"changes": changes, "documents": len(documents), "texts": len(set(groups)), "tokens": tokens}
    return found


def _change(change: StatisticChange) -> dict[str, float | None]:
    interval = change.change
    if interval is None:
        return {"change": None, "ci_low": None, "ci_high": None}
    return {"change": interval.value, "ci_low": interval.low, "ci_high": interval.high}


def judge(run: Run, load: Callable[[], nn.Module]) -> tuple[Evaluation, Verdict]:
    """Evaluate the finetuned model against the original, on all that the run is evaluated on (also its suites), and judge it.

    Args:
        run: with contrasts, and a plan that was carried out.
        load: gives the finetuned model, once the original was let go of.
    """
    recipe, loaded, max_tokens = run.recipe, run.loaded, run.micro_batch_tokens
    kept = recipe.suite or recipe.decisions or recipe.continuations or recipe.judge_prompts or recipe.cache
    cache = MeasurementCache(Path(recipe.cache or run.folder / "cache") if kept else None, run.notify)
    material = Material(recipe=recipe, prompts=run.prompts, judged=run.judged, documents=run.calibration.judging)
    encoder, tokenizer, layers = loaded.encoder, loaded.tokenizer, list(loaded.layers)
    shared: dict[str, Any] = {"encoder": encoder, "max_tokens": max_tokens, "notify": run.notify}
    up_to = share_up_to(run, loaded.model)
    original = Subject(loaded.model, tokenizer, loaded.architecture, cache, share_up_to=up_to, **shared)
    run.notify(f"evaluating {number_of(len(material.aligned), 'contrast')}")
    before = measured(original, material)
    floor = noise_floor(original, material.aligned, run.prompts.values, before.contrasts)
    changes = _random_sets(run, {one.id: one.divergence for one in before.contrasts})
    del original
    loaded.release()
    finetuned = load()
    architecture = recognise(finetuned, recipe.architecture)
    up_to = share_up_to(run, finetuned)
    after = measured(Subject(finetuned, tokenizer, architecture, cache, share_up_to=up_to, **shared), material)
    if {site.layer for site in architecture.sites.values()} != set(layers):
        layers = []
    nothing = Exhibits(described={}, tensors={})
    evaluation = replace(compared(material, before, after, None, floor, layers, "removal and training", nothing), exhibits=None)
    inputs = verdict_inputs(
        evaluation.items,
        applied=True,
        why_not=None,
        guard=_guard(before.text, after.text, recipe.max_perplexity_increase),
        random_changes=changes,
        seed=recipe.seed,
    )
    return evaluation, verdict_of(inputs)


def side_by_side(evaluation: Evaluation, of_pruning: Evaluation | None) -> list[dict[str, Any]]:
    """What was measured of all three models, but on the contrasts that chose neurons: metric, split, control, and each value; the
    change from the original to the finetuned model with its 95 % interval.

    Args:
        of_pruning: the run's own evaluation; None: it was not evaluated, and the pruned model's values are null.
    """
    rows = [] if of_pruning is None else of_pruning.rows
    known = {(row.metric, row.split, row.control): row.after for row in rows if row.layer is None and row.category is None}
    return [
        {
            "metric": row.metric,
            "split": row.split,
            "control": row.control,
            "original": row.before,
            "pruned": known.get((row.metric, row.split, row.control)),
            "finetuned": row.after,
            "change": row.change,
            "ci_low": row.ci_low,
            "ci_high": row.ci_high,
        }
        for row in evaluation.rows
        if row.layer is None and row.category is None and row.split != "select" and row.metric not in LANGUAGE_METRICS
    ]


def _random_sets(run: Run, divergences: Mapping[str, float]) -> tuple[float, ...]:
    """As `evaluate` measured them, where it did; they depend on the original and the plan alone."""
    if run.folder.has("evaluate"):
        run.folder.refuse_damaged("evaluate")
        return tuple(run.record.get("random_sets", ()))
    return random_sets_of(run, run.read_plan(), divergences)


def _guard(before: TextLoss, after: TextLoss, limit: float) -> dict[str, Any]:
    change = perplexity_change(before, after, level=2 * BOUND_LEVEL - 1).change
    increase = after.perplexity / before.perplexity - 1
    return {"increase": increase, "limit": limit, "bound_high": None if change is None else change.high}
