"""START HERE: the stages of a run, in order. No maths; each stage reads the run folder as the stage before left it.

    read -> audit -> score -> plan -> prune -> evaluate -> report

A stage that is done with the same inputs is not repeated. Every stage is also a function of its own, with the command line's words
as keywords: `audit(model="smollm2-135m", prompts="builtin:en", output="run")`, then `score(output="run")`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairprune_framework.errors import RunFolderError, UserError
from fairprune_framework.recipes.recipe import Recipe
from fairprune_framework.runs.folder import CHECKPOINT, STAGES
from fairprune_framework.runs.open import open_run
from fairprune_framework.runs.run import Run
from fairprune_framework.selection.decide import plan_of, scores_of
from fairprune_framework.stages.checks import demand_of, missing_statistics, prepare
from fairprune_framework.utilities.files import digest, read_json, write_json, write_text

if TYPE_CHECKING:
    from fairprune_framework.contrasts.schema import Contrast

# -- the stages ------------------------------------------------------------------------------------------------------------


def _read(run: Run) -> list[str]:
    """Prompt set -> `contrasts.jsonl`, and what could not be used -> `skipped.jsonl`."""
    from fairprune_framework.contrasts.build import write_jsonl
    from fairprune_framework.contrasts.splits import split_content

    contrasts, alignment = run.contrasts, run.alignment
    left_out = [{"where": where, "reason": reason} for where, reason in [*contrasts.skipped, *alignment.skipped]]
    unusable = {identity for identity, _ in alignment.skipped}
    split_hash = 0

    def usable() -> Iterator[Contrast]:
        nonlocal split_hash
        for contrast in contrasts:
            split_hash += split_content(contrast)
            if contrast.id not in unusable:
                yield contrast

    run.begin("read")
    write_jsonl(usable(), run.folder / "contrasts.jsonl")
    if left_out:
        import json

        lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in left_out)
        write_text(run.folder / "skipped.jsonl", lines)
        run.notify(f"{len(left_out)} contrasts were skipped: see {run.folder / 'skipped.jsonl'}")
    for category, count in contrasts.others.items():
        run.notify(
            f"category {category!r} has more than {len(contrasts.vocabularies[category])} attribute values: {count} variants are "
            "counted as 'other' in statistics"
        )
    run.note(
        hashes={"prompts": contrasts.sha256, "split": f"{split_hash % 2**256:064x}", "model": run.fingerprint},
        contrasts={"used": alignment.contrasts, "skipped": len(left_out), "others": contrasts.others},
        architecture=run.architecture.name,
    )
    return ["contrasts.jsonl"] + (["skipped.jsonl"] if left_out else [])


def _audit(run: Run) -> list[str]:
    """Contrasts of the split `select` + model -> `statistics.*`; what is summed is kept in `checkpoint/` until they are there."""
    import shutil

    from fairprune_framework.stages.audit import audit_run

    outcome = audit_run(run, demand_of(run))
    if run.parallelism.sharded:
        run.forget_model()
    else:
        run.model.to(run.device)  # Lightning leaves it on the CPU
    run.begin("audit")
    outcome.statistics.save(run.folder)
    shutil.rmtree(run.folder / CHECKPOINT, ignore_errors=True)
    sharing = {"prefixes": run.sharing.up_to > 0, "because": run.sharing.because}
    run.note(hashes={"composition": outcome.statistics.composition}, audit=outcome.to_json() | {"sharing": sharing})
    return ["statistics.safetensors", "statistics.json"]


def _score(run: Run) -> list[str]:
    """Statistics + weights -> `scores.safetensors`."""
    from fairprune_framework.selection import scoring

    scores = scores_of(run)
    run.begin("score")
    scoring.save_scores(scores, run.folder / "scores.safetensors")
    return ["scores.safetensors"]


def _plan(run: Run) -> list[str]:
    """Scores + budget -> `plan.json`."""
    plan = plan_of(run, run.scores)
    run.begin("plan")
    write_json(run.folder / "plan.json", plan.to_json())
    if plan.reason:
        run.notify(f"plan: {plan.reason}")
    return ["plan.json"]


def _prune(run: Run) -> list[str]:
    """Guard, then model + plan -> `model/`, verified; or an abstention that says why."""
    from fairprune_framework.calibration.text import padded
    from fairprune_framework.evaluation.guard import guard
    from fairprune_framework.models.loading import load_model, parameter_count
    from fairprune_framework.surgery.masking import check_plan
    from fairprune_framework.surgery.removal import save_pruned_model

    plan = run.plan
    check_plan(plan, run.model, run.architecture)
    run.begin("prune")
    run.note(parameters_before=parameter_count(run.model), parameters_after=parameter_count(run.model))
    if plan.count == 0:
        run.note(abstained=True, abstained_because=plan.reason or "the plan is empty")
        return []
    judged = guard(
        run.model, run.architecture, plan.sites, run.calibration, run.recipe.max_perplexity_increase, plan.multiplier
    )
    run.note(guard=judged.to_json())
    if not judged.held and not run.recipe.force:
        because = (
            f"perplexity on judging text would change by {judged.increase:+.1%}, "
            f"more than --max-perplexity-increase {judged.limit:.1%} allows"
        )
        run.note(abstained=True, abstained_because=because)
        run.notify(f"abstained: {because}")
        return []
    ids, mask = padded([document[:64] for document in run.calibration.judging[:4]])
    removal = save_pruned_model(
        run.model,
        run.tokenizer,
        plan,
        run.architecture,
        run.folder / "model",
        probe_ids=ids[:, : int(mask.sum(1).min())],
        round_to=run.recipe.round_to,
        reload=lambda folder: load_model(str(folder))[0].to(run.device),
        restoration=run.folder / "restoration.safetensors",
    )
    run.note(abstained=False, removal=removal.to_json(), parameters_after=removal.parameters_after)
    if removal.note:
        run.notify(f"prune: {removal.note}")
    return ["model", "restoration.safetensors"]


def _evaluate(run: Run) -> list[str]:
    """Before and after -> `evaluation.json`, `evaluation_items.parquet`, `exhibits.*`, and the verdict."""
    from fairprune_framework.evaluation.compare import evaluate_run
    from fairprune_framework.evaluation.exhibits import FILES as EXHIBITS

    evaluation, verdict = evaluate_run(run)
    run.begin("evaluate")
    evaluation.save(run.folder)
    run.note(n_unequal=evaluation.n_unequal)
    if verdict is not None:
        run.note(verdict=verdict.word, verdict_because=verdict.because)
    samples = ["evaluation_samples.parquet"] if evaluation.samples else []
    return ["evaluation.json", "evaluation_items.parquet", *samples, *EXHIBITS]


def _report(run: Run) -> list[str]:
    """All of the above -> `report.html`, something to look at, and the card in `model/`. Reads files alone."""
    from fairprune_framework.reporting.card import write_card
    from fairprune_framework.reporting.report import NAME, make_report

    run.begin("report")
    make_report([run.folder])
    return [NAME, *write_card(run.folder)]


_WORK: dict[str, Callable[[Run], list[str]]] = {
    "read": _read,
    "audit": _audit,
    "score": _score,
    "plan": _plan,
    "prune": _prune,
    "evaluate": _evaluate,
    "report": _report,
}

# -- running them ----------------------------------------------------------------------------------------------------------


def _finished(run: Run, stage: str) -> bool:
    """The stage is done; an audit only if it holds every statistic that the plugins want."""
    if not run.done(stage):
        return False
    if stage == "audit" and "score" in run.record["stages"] and run.record["stages"]["score"]["key"] == run.key("score"):
        return True  # its scores are there: no need to load a model to ask
    if stage == "audit" and (missing := missing_statistics(run)):
        if not run.overwrite:
            raise UserError(
                f"the audit in {run.folder} holds no {missing}: give --overwrite to audit again, or another --output"
            )
        return False
    return True


def _do(run: Run, stage: str) -> None:
    finished = _finished(run, stage)
    if stage == "audit" and run.recipe.is_distributed:
        from fairprune_framework.auditing.distributed.parallel import broadcast

        broadcast(run.parallelism, "leave" if finished else "audit")
    if finished:
        run.notify(f"{stage}: done before")
        return
    began = time.perf_counter()
    files = _WORK[stage](run)
    run.finish(stage, time.perf_counter() - began, files)


def run_stages(run: Run, *stages: str) -> Run:
    """Validate all, then do these stages in order. Ranks that are not 0 take part in the audit, and leave the process."""
    if not run.recipe.is_distributed or "audit" not in stages:
        return _run_stages(run, stages)
    from fairprune_framework.auditing.distributed import parallel as parallelism
    from fairprune_framework.stages import audit as stage

    if run.parallelism.rank:
        raise SystemExit(stage.run_worker_rank(run, lambda: demand_of(run)))
    parallelism.init_process_group(run.parallelism)
    try:
        return _run_stages(run, stages)
    finally:
        parallelism.destroy_process_group(run.parallelism)


def _run_stages(run: Run, stages: tuple[str, ...]) -> Run:
    prepare(run, stages)
    for name in stages:
        _do(run, name)
    return run


# -- as functions ----------------------------------------------------------------------------------------------------------


def run(recipe: Recipe | str | None = None, output: str | Path | None = None, **options: Any) -> Run:
    """Do every stage. `fp.run(fp.Recipe(model="smollm2-135m", prompts="builtin:en"), output="run")`.

    Args:
        recipe: a `Recipe`, or the name or file of one.
        output: the run folder; None: a temporary one that lives as long as the result.
        options: fields of the recipe; `model` and `prompts` may also be in memory (with `tokenizer`); `overwrite`, `notify`.

    Raises:
        UserError: the input is wrong; nothing was written.
    """
    fresh = recipe is not None or options.get("model") is not None
    return run_stages(_open(output, options, recipe=recipe, fresh=fresh), *STAGES)


def audit(model: Any = None, prompts: Any = None, output: str | Path | None = None, **options: Any) -> Run:
    """Stream the contrasts of the split `select` through the model into statistics."""
    return run_stages(_open(output, options, model=model, prompts=prompts), "read", "audit")


def score(run: Run | None = None, output: str | Path | None = None, **options: Any) -> Run:
    """Turn the statistics of an audit into scores."""
    return run_stages(_continued(run, output, options, "audit"), "score")


def plan(run: Run | None = None, output: str | Path | None = None, **options: Any) -> Run:
    """Choose neurons by the scores."""
    return run_stages(_continued(run, output, options, "score"), "plan")


def prune(run: Run | None = None, output: str | Path | None = None, *, plan: str | Path | None = None, **options: Any) -> Run:
    """Carry out the plan of a run, or a plan file on a model, if the guard holds."""
    if plan is None:
        return run_stages(_continued(run, output, options, "plan"), "prune")
    opened = run or _open(output, options)
    return run_stages(_adopt_plan(opened, Path(plan)), "prune")


def evaluate(run: Run | None = None, output: str | Path | None = None, **options: Any) -> Run:
    """Judge a run before and after; in a folder without a plan, one model alone."""
    opened = _continued(run, output, options, None)
    if "plan" in opened.record["stages"]:
        opened.needs("prune")
    if "plan_file" in opened.record:
        return run_stages(opened, "evaluate")  # the plan came as a file: reading prompts would begin the folder anew
    return run_stages(opened, "read", "evaluate")


def restore(
    run: Run | str | Path, output: str | Path | None = None, *, restoration: str | Path | None = None
) -> tuple[Any, Any]:
    """The original model and its tokenizer, from a pruned one: bit by bit what was pruned. See `surgery/undoing.py`."""
    from fairprune_framework.surgery.restore import restore_folder

    return restore_folder(run.folder if isinstance(run, Run) else Path(run), output, restoration)


def report(
    *runs: Run | str | Path,
    output: str | Path | None = None,
    figures: str | Path | None = None,
    format: str = "svg",
) -> Path:
    """Make the page of a run or an ablation again, or compare several runs; shows what is there and names what is missing.

    Args:
        runs: runs, or their folders.
        output: the HTML file; None: `report.html` in the folder of the one run.
        figures: a folder for the charts as files, in `format`: svg, png or pdf.

    Returns:
        The HTML file.
    """
    from fairprune_framework.reporting.report import make_report

    if not runs and output is not None:
        runs, output = (output,), None
    folders = [Path(run) if isinstance(run, (str, Path)) else run.folder for run in runs]
    file, to = (None if path is None else Path(path) for path in (output, figures))
    return make_report(folders, file, to, format)[1][0]


def _open(output: str | Path | None, options: dict[str, Any], **more: Any) -> Run:
    options = dict(options)
    for name in ("model", "tokenizer", "prompts", "overwrite", "notify", "recipe"):
        if name in options:
            more.setdefault(name, options.pop(name))
    return open_run(output, options, **more)


def _continued(run: Run | None, output: str | Path | None, options: dict[str, Any], before: str | None) -> Run:
    if run is not None:
        options = dict(options)
        overwrite = options.pop("overwrite", run.overwrite)
        opened = run.changed(options, overwrite)
    else:
        opened = _open(output, options)
    if before is not None:
        opened.needs(before)
    return opened


def _adopt_plan(run: Run, path: Path) -> Run:
    from fairprune_framework.api.types import Plan
    from fairprune_framework.surgery.masking import check_plan

    if not path.is_file():
        raise UserError(f"there is no plan file {path}")
    try:
        data = read_json(path)
    except RunFolderError as error:
        raise UserError(str(error)) from error
    plan = Plan.from_json(data, str(path))
    check_plan(plan, run.model, run.architecture)
    if "score" in run.record["stages"]:
        raise RunFolderError(f"{run.folder} has a plan of its own: give another --output for {path}")
    run.record["plan_file"] = digest(data)
    if not run.done("plan"):
        prepare(run, ("prune",))
        run.begin("plan")
        write_json(run.folder / "plan.json", plan.to_json())
        run.note(hashes={"model": run.fingerprint})
        run.finish("plan", 0.0, ["plan.json"])
    return run
