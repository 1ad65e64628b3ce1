"""The stage `evaluate`: the original model, then what the plan made of it (or another model), on the same material.

The original is measured whole, masked where a comparison needs both answers at once; then it is let go of and the other one loaded, so that
one model is in memory at a time, unless the original came in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fairprune_framework.api.types import Plan
from fairprune_framework.auditing.prefix_sharing import prefix_sharing
from fairprune_framework.errors import UserError
from fairprune_framework.evaluation import exhibits, judging_text
from fairprune_framework.evaluation.cache import MeasurementCache
from fairprune_framework.evaluation.compare import Material, Measured, compared, measured, noise_floor
from fairprune_framework.evaluation.judgement import JUDGING, verdict_inputs
from fairprune_framework.evaluation.metrics.outputs import OutputReader
from fairprune_framework.evaluation.metrics.perplexity import LanguageCost, language_cost
from fairprune_framework.evaluation.random_sets import matched_sets, norms_of, random_changes, random_means
from fairprune_framework.evaluation.results import Evaluation
from fairprune_framework.evaluation.subject import Subject
from fairprune_framework.evaluation.tasks import decisions
from fairprune_framework.evaluation.tasks.data import check_data, limits_of, place_of, tasks_of
from fairprune_framework.evaluation.tasks.registry import OWN
from fairprune_framework.evaluation.verdict import VerdictInputs, verdict_of
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.loading import load_model, load_tokenizer
from fairprune_framework.runs.run import Run
from fairprune_framework.utilities.files import refuse_unwritable
from fairprune_framework.utilities.progress import bar
from fairprune_framework.utilities.wording import number_of


def check(run: Run) -> None:
    """Everything about the evaluation that can be wrong with the input, before a model is measured.

    Raises:
        UserError: an empty text to generate from, an unknown task, absent data, a set that may not judge, another model that is not there
            or has another tokenizer.
        RunFolderError: the cache cannot be made.
    """
    recipe = run.recipe
    if recipe.against is not None:
        theirs = load_tokenizer(recipe.against, trust_remote_code=recipe.trust_remote_code)
        _refuse_other_tokenizer(run, recipe.against, run.loaded.tokenizer, theirs)
    for text in recipe.generate:
        if not text.strip() or not run.loaded.encoder.ids(text):
            raise UserError(f"--generate {text!r} is no text to go on from")
    if recipe.judge_prompts:
        _ = run.judged
    if recipe.decisions is not None:
        decisions.read(decisions.path_of(recipe.decisions))
    if recipe.cache is not None:
        refuse_unwritable(Path(recipe.cache))
    tasks = tasks_of(recipe.suite)
    limits_of(recipe.task_limit, tasks)
    if recipe.suite:
        from fairprune_framework.evaluation.tasks.harness import check_tasks

        if not tasks:
            raise UserError(f"--suite names no task. Got {','.join(recipe.suite)!r} instead.")
        check_tasks(tasks)
    folder = None if recipe.task_data is None else Path(recipe.task_data)
    check_data(tasks, folder)
    if folder is not None:
        for task in OWN.keys() & tasks:
            OWN[task].read(place_of(task, folder))


def run(run: Run) -> list[str]:
    """Do the stage: `evaluation.json`, `evaluation_items.parquet`, `exhibits.*`, and the verdict; returns the files that it left."""
    check(run)
    for name, judged in (run.judged if run.recipe.judge_prompts else {}).items():
        for note in judged.notes:
            run.notify(f"judging set {name!r}: {note}")
    evaluation, inputs = _evaluate(run)
    run.folder.begin("evaluate")
    evaluation.save(run.folder.path)
    run.folder.note(n_unequal=evaluation.n_unequal)
    if inputs is not None:
        verdict = verdict_of(inputs)
        reasons, sides = [reason.to_json() for reason in verdict.reasons], inputs.specificity
        run.folder.note(verdict=verdict.word, verdict_because=verdict.because)
        run.record.update(
            {
                "verdict_reasons": reasons,
                "verdict_needs": list(verdict.needs),
                "specificity": None if sides is None else sides.to_json(),
                "random_sets": list(inputs.random_changes),
            }
        )
    samples = ["evaluation_samples.parquet"] if evaluation.samples else []
    return ["evaluation.json", "evaluation_items.parquet", *samples, *exhibits.FILES]


def _evaluate(run: Run) -> tuple[Evaluation, VerdictInputs | None]:
    """What the verdict rests on is None where there is no plan: one model alone, or one against another.

    After is the saved model where there is one; where the run abstained with a plan, the masked original, so that the reader sees
    what would have happened.
    """
    recipe, loaded, max_tokens = run.recipe, run.loaded, run.micro_batch_tokens
    plan = run.read_plan() if run.folder.has("plan") else None
    units, multiplier = (plan.sites, plan.scaling) if plan is not None else ({}, 0.0)
    saved = run.folder / "model"
    kept = recipe.suite or recipe.decisions or recipe.continuations or recipe.judge_prompts or recipe.against or recipe.cache
    cache = MeasurementCache(Path(recipe.cache or run.folder / "cache") if kept else None, run.notify)
    judging = run.calibration.judging
    material = Material(recipe=recipe, prompts=run.prompts, judged=run.judged, documents=judging)
    encoder, tokenizer = loaded.encoder, loaded.tokenizer
    original = Subject(
        loaded.model,
        tokenizer,
        loaded.architecture,
        cache,
        encoder=encoder,
        max_tokens=max_tokens,
        share_up_to=share_up_to(run, loaded.model),
        notify=run.notify,
    )
    layers = list(loaded.layers)
    run.notify(f"evaluating {number_of(len(material.aligned), 'contrast')}")
    if recipe.continuations and not material.written_on:
        run.notify("--continuations: no contrast is held out, so that nothing is continued; see --split")
    scores = run.read_scores() if run.folder.has("score") else None
    watched = exhibits.Watched(loaded.architecture, run.prompts, units, scores)
    masked = original.masked_by(units, multiplier)
    cost = _text_cost(run, plan, masked.change) if plan is not None and any(units.values()) else None
    aligned, values = run.prompts.aligned, run.prompts.values
    seen = OutputReader(exhibits.certain(aligned))
    before = measured(original, material, movements=watched.reader, outputs=seen, text=cost.before if cost else None)
    divergences = {one.id: one.divergence for one in before.contrasts}
    shown = exhibits.typical(aligned, divergences)
    seen.wanted = {one.id for one in shown}
    floor = noise_floor(original, material.aligned, values, before.contrasts, seen.lacks(shown), seen)
    moving = watched.moving(loaded, run.prompts, max_tokens)
    applied = plan is not None and not run.record.get("abstained", True)
    changes = random_sets_of(run, plan, divergences) if plan is not None and applied else ()
    after: Measured | None = None
    applied_by = None
    seen_after = OutputReader(shown)
    if saved.is_dir() or recipe.against:
        applied_by = "removal" if saved.is_dir() else "another model"
        del original, masked
        loaded.release()
        other = _other_model(run, str(saved) if saved.is_dir() else str(recipe.against), tokenizer)
        run.watch(other, "other", "evaluate")
        architecture = recognise(other, recipe.architecture)
        subject = Subject(
            other,
            tokenizer,
            architecture,
            cache,
            encoder=encoder,
            max_tokens=max_tokens,
            share_up_to=share_up_to(run, other),
            notify=run.notify,
        )
        after = measured(subject, material, outputs=seen_after)
        subject.see(seen_after, seen_after.lacks(shown), values)
        if {site.layer for site in architecture.sites.values()} != set(layers):
            layers = []
    elif any(units.values()):
        applied_by = "masking"
        after = measured(masked, material, outputs=seen_after, text=cost.after if cost else None)
        masked.see(seen_after, seen_after.lacks(shown), values)
    looked_at = exhibits.collect(loaded, run.prompts, shown, seen, seen_after if after else None, watched, moving)
    evaluation = compared(material, before, after, cost.kl if cost else None, floor, layers, applied_by, looked_at)
    if plan is None:
        return evaluation, None
    return evaluation, verdict_inputs(
        evaluation.items,
        applied=applied,
        why_not=run.record.get("abstained_because"),
        guard=run.record.get("guard"),
        random_changes=changes,
        seed=recipe.seed,
    )


def _text_cost(run: Run, plan: Plan, change: Callable[[], AbstractContextManager[None]]) -> LanguageCost:
    """The judging text with the plan masked, which answers as the smaller model does (`prune` verified it).

    What the guard measured, where the model computes in float32 as the guard does; otherwise measured now.

    Args:
        change: opens the mask.
    """
    model, documents, max_tokens = run.loaded.model, run.calibration.judging, run.micro_batch_tokens
    if all(parameter.dtype == torch.float32 for parameter in model.parameters()):
        run.folder.refuse_damaged("prune")
        kept = judging_text.load(run.folder.path, judging_text.key_of(run.fingerprint, model, plan, documents, max_tokens))
        if kept is not None:
            return kept
    return language_cost(model, documents, change=change, max_tokens=max_tokens)


def random_sets_of(run: Run, plan: Plan, divergences: Mapping[str, float]) -> tuple[float, ...]:
    """What random sets of neurons, matched to the plan by layer and activation norm, do to the held-out divergence.

    Args:
        divergences: of the original model, of every contrast.
    """
    prompts, draws, protected = run.prompts, run.recipe.random_sets, set(run.recipe.protected_layers)
    judging = [one for one in prompts.aligned if one.split == JUDGING and one.role == "demographic"]
    if not draws or not judging:
        return ()
    audited = run.read_statistics() if run.folder.has("audit") else None
    norms = norms_of(audited, run.loaded, run.calibration.scoring)
    allowed = {
        name: torch.full((site.units,), site.layer not in protected) for name, site in run.loaded.architecture.sites.items()
    }
    means = random_means(plan, run.loaded, run.calibration.scoring)
    sets = matched_sets(plan, norms, allowed, draws, run.recipe.seed, means)
    with bar("random sets", draws, "sets") as advance:
        return random_changes(
            run.loaded,
            judging,
            prompts.values,
            divergences,
            sets,
            run.micro_batch_tokens,
            advance,
            share_up_to(run, run.loaded.model),
        )


def share_up_to(run: Run, model: nn.Module) -> int:
    """Texts up to this length are computed with shared prefixes; 0: the model does not allow it, or the recipe."""
    return 0 if run.recipe.prefix_sharing == "never" else prefix_sharing(model).up_to


def _other_model(run: Run, name: str, tokenizer: Any) -> Any:
    recipe = run.recipe
    other, theirs = load_model(
        name, dtype=recipe.dtype, trust_remote_code=recipe.trust_remote_code, allow_pickle=recipe.allow_pickle
    )
    _refuse_other_tokenizer(run, name, tokenizer, theirs)
    return other.to(run.loaded.device)


def _refuse_other_tokenizer(run: Run, name: str, tokenizer: Any, theirs: Any) -> None:
    if theirs.get_vocab() != tokenizer.get_vocab():
        raise UserError(
            f"{name} has another tokenizer than {run.recipe.model}: their answers cannot be compared token by token"
        )
