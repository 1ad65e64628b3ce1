"""The stage `evaluate`: the original model and what the plan made of it, on every contrast and on judging text."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from torch import nn

from fairprune_framework.architecture import Architecture, recognise
from fairprune_framework.auditing.batches import compose
from fairprune_framework.evaluation import evidence, exhibits
from fairprune_framework.evaluation.contrast_metrics import ContrastMeasure, measure
from fairprune_framework.evaluation.generation import ARTICLE_PROMPTS, continue_prompts, first_difference
from fairprune_framework.evaluation.language import language_cost
from fairprune_framework.evaluation.verdict import Verdict, decide
from fairprune_framework.models import load_model
from fairprune_framework.progress import bar
from fairprune_framework.surgery.masking import masked

if TYPE_CHECKING:
    from fairprune_framework.session import Run


def evaluate_run(run: Run) -> tuple[evidence.Evaluation, Verdict | None]:
    """Evaluate a run; the verdict is None where there is no plan, and so one model alone.

    After is the saved model where there is one; where the run abstained with a plan, the masked original, so that the reader sees
    what would have happened.
    """
    planned = "plan" in run.record["stages"]
    units = run.plan.sites if planned else {}
    saved = run.folder / "model"
    change: Callable[[], AbstractContextManager[None]] = nullcontext
    other: nn.Module | None = None
    architecture: Architecture = run.architecture
    applied_by = None
    if saved.is_dir():
        applied_by, other = "removal", load_model(str(saved), dtype=run.recipe.dtype)[0].to(run.device)
        architecture = recognise(other, run.recipe.architecture)
    elif any(units.values()):
        applied_by, change = "masking", lambda: masked(run.model, run.architecture, units, run.plan.multiplier)

    contrasts = run.aligned[0]
    batches = list(compose(contrasts, run.values, run.recipe.micro_batch_tokens))
    run.notify(f"evaluating {len(contrasts)} contrasts")
    with bar("before", len(contrasts), "contrasts") as advance:
        before = measure(run.model, run.architecture, batches, advance)
    after: list[ContrastMeasure] | None = None
    if applied_by is not None:
        with change(), bar("after", len(contrasts), "contrasts") as advance:
            after = measure(other or run.model, architecture, batches, advance)
    items = evidence.items_of(contrasts, before, after)
    cost = language_cost(run.model, run.calibration.judging, other=other, change=change)
    generations = _generations(run, other, change, applied_by is not None)
    changed = exhibits.After(model=other or run.model, architecture=architecture, change=change) if applied_by else None
    shown = exhibits.collect(run, {measured.id: measured.divergence for measured in before}, changed, generations)
    layers = sorted({site.layer for site in run.architecture.sites.values()})
    rows = evidence.contrast_rows(items, layers, run.recipe.seed)
    rows += evidence.language_rows(cost, applied_by is None)
    evaluation = evidence.Evaluation(
        rows=tuple(rows),
        items=tuple(items),
        generations=tuple(generations),
        n_unequal=sum(not measured.equal_length for measured in before),
        applied_by=applied_by,
        exhibits=shown,
    )
    return evaluation, judge(run, items) if planned else None


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


def _generations(
    run: Run, other: nn.Module | None, change: Callable[[], AbstractContextManager[None]], both: bool
) -> list[dict[str, Any]]:
    prompts = [*ARTICLE_PROMPTS, *run.recipe.generate]
    before = continue_prompts(run.model, run.tokenizer, run.encoder, prompts)
    after: list[str | None] = [None] * len(prompts)
    if both:
        with change():
            after = list(continue_prompts(other or run.model, run.tokenizer, run.encoder, prompts))
    return [
        {"prompt": p, "before": b, "after": a, "first_difference": None if a is None else first_difference(b, a)}
        for p, b, a in zip(prompts, before, after, strict=True)
    ]
