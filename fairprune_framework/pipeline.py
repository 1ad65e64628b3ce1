"""The pipeline: start here. A stage is a module of `stages/`; each reads the run folder as the stage before left it.

    read -> audit -> score -> plan -> prune -> evaluate -> report

A stage that is done with the same inputs is not repeated. Every stage is also a function of its own, with the command line's options
as keywords: `audit(model="smollm2-135m", prompts="builtin:en", output="run")`, then `score(output="run")`.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairprune_framework.errors import RankFailed, UserError
from fairprune_framework.recipes.loading import with_options
from fairprune_framework.recipes.recipe import Recipe
from fairprune_framework.runs.folder import STAGES as ORDER
from fairprune_framework.utilities import freed_memory, stopping
from fairprune_framework.utilities.progress import Notify, silent

if TYPE_CHECKING:
    from fairprune_framework.runs.run import Run

STAGES = {name: f"fairprune_framework.stages.{name}" for name in ORDER}
"""Stage -> its module, with `check(run)` and `run(run) -> files`; imported when it is needed. Order is that of the run."""


def stage(name: str) -> Any:
    """The module of a stage."""
    return import_module(STAGES[name])


# -- running them ----------------------------------------------------------------------------------------------------------


def run_stages(run: Run, *stages: str, named: Collection[str] = ()) -> Run:
    """Check everything, then do these stages in order. Ranks that are not 0 compute their part of the audit, and leave the process.

    Args:
        named: stages that the user asked for: with `overwrite` they are done again, also if they are done with the same inputs.
    """
    redo = frozenset(named if run.folder.overwrite else ())
    try:
        return _as_rank(run, stages, redo)
    finally:
        run.folder.release()


def _as_rank(run: Run, stages: tuple[str, ...], redo: Collection[str]) -> Run:
    if not run.recipe.is_distributed or "audit" not in stages:
        return _run_stages(run, stages, redo)
    from fairprune_framework.auditing.distributed import liveness
    from fairprune_framework.auditing.distributed.parallel import destroy_process_group, init_process_group
    from fairprune_framework.stages.audit import run_worker_rank

    parallelism = run.parallelism
    if parallelism.rank:
        raise SystemExit(run_worker_rank(run))
    try:
        init_process_group(parallelism)
        return _run_stages(run, stages, redo)
    except RuntimeError as error:
        if (told := liveness.in_words(error)) is None:
            raise
        raise RankFailed(f"{told}: give the same command again to resume") from error
    finally:
        destroy_process_group(parallelism)


def _run_stages(run: Run, stages: tuple[str, ...], redo: Collection[str]) -> Run:
    from fairprune_framework.stages.checks import prepare

    if prepare(run, stages, redo):
        for name in stages:
            stage(name).check(run)
    for name in stages:
        _do(run, name, again=name in redo)
    run.folder.tidy()
    return run


def _do(run: Run, name: str, *, again: bool) -> None:
    finished = not again and _finished(run, name)
    if name == "audit" and run.recipe.is_distributed:
        from fairprune_framework.auditing.distributed import liveness, parallel

        parallel.broadcast(run.parallelism, "leave" if finished else "audit")
        if finished and (live := liveness.current()) is not None:
            live.stop()  # the others leave, as they should: what is left to do needs none of them
    if finished:
        run.notify(f"{name}: done before")
        return
    stopping.check()
    if run.folder.path.is_dir():
        run.folder.own()
    began = time.perf_counter()
    with run.counting(name) as counted:
        files = stage(name).run(run)
    freed_memory.give_back()
    stopping.check()
    run.folder.finish(name, time.perf_counter() - began, files, counted.to_json(run.forward_rate))


def _finished(run: Run, name: str) -> bool:
    """The stage is done; an audit only if it holds every statistic that the plugins want."""
    folder = run.folder
    if not folder.done(name):
        return False
    if name != "audit" or (folder.has("score") and folder.record["stages"]["score"]["key"] == folder.key("score")):
        return True  # where its scores are there, no model is loaded to ask
    from fairprune_framework.stages.checks import missing_statistics

    missing = missing_statistics(run)
    if missing and not folder.overwrite:
        raise UserError(f"the audit in {folder} holds no {missing}: give --overwrite to audit again, or another --output")
    return missing is None


# -- as functions ----------------------------------------------------------------------------------------------------------


def run(recipe: Recipe | str | None = None, output: str | Path | None = None, *, speed: bool = True, **options: Any) -> Run:
    """Do every stage. `fp.run(fp.Recipe(model="smollm2-135m", prompts="builtin:en"), output="run")`.

    Args:
        recipe: a `Recipe`, or the name or file of one.
        output: the run folder; None: a temporary one that lives as long as the result.
        speed: measure tokens per second before and after, for a few seconds, where tensors become smaller.
        options: fields of the recipe; `model` and `prompts` may also be in memory (with `tokenizer`); `overwrite`, `notify`.

    Raises:
        UserError: the input is wrong; nothing was written.
    """
    fresh = recipe is not None or options.get("model") is not None
    opened = _open(output, options, recipe=recipe, fresh=fresh)
    opened.measures_speed = speed
    unchanged = all(opened.folder.has(name) and opened.folder.current(name) for name in STAGES if name != "report")
    return run_stages(opened, *STAGES, named=STAGES if unchanged else ())  # where something changed, that and what follows


def audit(model: Any = None, prompts: Any = None, output: str | Path | None = None, **options: Any) -> Run:
    """Stream the contrasts of the split `select` through the model into statistics."""
    return run_stages(_open(output, options, model=model, prompts=prompts), "read", "audit", named=("audit",))


def score(run: Run | None = None, output: str | Path | None = None, **options: Any) -> Run:
    """Turn the statistics of an audit into scores."""
    return run_stages(_continued(run, output, options, "audit"), "score", named=("score",))


def plan(run: Run | None = None, output: str | Path | None = None, **options: Any) -> Run:
    """Choose neurons by the scores."""
    return run_stages(_continued(run, output, options, "score"), "plan", named=("plan",))


def prune(
    run: Run | None = None,
    output: str | Path | None = None,
    *,
    plan: str | Path | None = None,
    shard_by_shard: bool = False,
    speed: bool = True,
    **options: Any,
) -> Run:
    """Carry out the plan of a run, or a plan file on a model, if the guard holds.

    Args:
        shard_by_shard: read and write safetensors tensor by tensor, for a model that does not fit in memory. No forward is computed, so
            that the guard measures nothing: `force=True` must say that this is wanted.
        speed: as for `run`.
    """
    opened = _continued(run, output, options, "plan") if plan is None else run or _open(output, options)
    if shard_by_shard:
        stage("prune").check_unread(opened)
        opened = opened.unread()
    opened.measures_speed = speed
    if plan is not None:
        opened = stage("plan").adopt(opened, Path(plan))
    return run_stages(opened, "prune", named=("prune",))


def evaluate(run: Run | None = None, output: str | Path | None = None, **options: Any) -> Run:
    """Judge a run before and after; in a folder without a plan, one model alone."""
    opened = _continued(run, output, options, None)
    if opened.folder.has("plan"):
        opened.folder.needs("prune")
    if "plan_file" in opened.record:
        return run_stages(
            opened, "evaluate", named=("evaluate",)
        )  # the plan came as a file: reading prompts would begin the folder anew
    return run_stages(opened, "read", "evaluate", named=("evaluate",))


def restore(
    run: Run | str | Path,
    output: str | Path | None = None,
    *,
    restoration: str | Path | None = None,
    layers: Collection[int] = (),
    categories: Collection[str] = (),
    neurons: Collection[str] = (),
    architecture: str | None = None,
    **allowed: bool,
) -> tuple[Any, Any]:
    """The original model and its tokenizer, from a pruned one: bit by bit what was pruned.

    Args:
        run: a run, or its folder, or that of a pruned model.
        output: folder to make; None: nothing is written.
        restoration: the file; None: the one in or beside the folder.
        layers, categories: put back only the neurons of these layers and of these categories; the rest of the plan stays carried out.
        neurons: and these, `LAYER:UNIT` or `SITE:UNIT`.
        architecture: adapter that the run named, where only a part is put back.
        allowed: `trust_remote_code`, `allow_pickle`, as `load_model`.

    Raises:
        UserError: no such model, restoration, layer, category or neuron.
        VerificationFailed: what would come out is not, bit by bit, what it should be; nothing is written.
    """
    from fairprune_framework.models.loading import load_model
    from fairprune_framework.recipes.recipe import PluginSpec
    from fairprune_framework.surgery.partial import Part
    from fairprune_framework.surgery.restore import restore_folder, restored_model

    part = Part(layers=tuple(layers), categories=tuple(categories), neurons=tuple(neurons))
    adapter = PluginSpec(plugin=architecture) if architecture else None
    if output is None:
        return restored_model(_folder(run), restoration, part=part or None, architecture=adapter, **allowed)
    restore_folder(_folder(run), output, restoration, part=part or None, architecture=adapter, **allowed)
    options: dict[str, Any] = dict(allowed)
    return load_model(str(output), **options)


def export(run: Run | str | Path, output: str | Path, *, format: str, **allowed: bool) -> dict[str, Any]:
    """Write the pruned model of a run, or the model in a folder, for another program.

    Args:
        output: the folder to make, or the file that ends in `.gguf`.
        format: `hf`: plain transformers, uneven layers filled up with zeros; `vllm`: as stored; `gguf`: one file for llama.cpp.
        allowed: `trust_remote_code`, `allow_pickle`, as `load_model`.

    Returns:
        `format`, `output`, `bytes`, `filled` (parameters filled up), `architecture` (of a GGUF file), `serve` (how it is read).

    Raises:
        UserError: no such model, an output that is taken, or a model that the format cannot hold; the text says why.
        VerificationFailed: what was written does not answer as the model; nothing is kept.
    """
    from fairprune_framework.surgery.export import export as write

    return write(_folder(run), output, format, **allowed).to_json()


def finetune(
    run: Run | str | Path,
    output: str | Path | None = None,
    *,
    overwrite: bool = False,
    verdict: bool = True,
    notify: Notify = silent,
    accelerator: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Train the pruned model of a run for a short while; planned neurons stay as the plan left them.

    Args:
        run: a run, or its folder.
        output: folder to make, a model as transformers loads it; None: `finetuned/` in the run folder.
        overwrite: replace a finetuned model that is there.
        verdict: evaluate the contrasts too, against the original; otherwise perplexity alone.
        accelerator, trust_remote_code, allow_pickle: as in a recipe, where `run` is a folder.
        options: of `recovery.options.Options`: `text`, `distill`, `method`, `steps` or `tokens`, `batch_tokens`, `learning_rate`,
            `rank`, `seed`.

    Returns:
        The content of `finetune.json`, and `folder`.

    Raises:
        UserError: no such run, one without a pruned model, a text that cannot be used, an output that is taken, or no PEFT.
        VerificationFailed: the saved model is not the trained one, or a planned neuron changed; nothing is kept.
    """
    from fairprune_framework.recovery.finetune import finetune as train
    from fairprune_framework.recovery.options import Options
    from fairprune_framework.runs.open import open_existing

    wanted = Options(**options)
    if isinstance(run, (str, Path)):
        given = {"accelerator": accelerator} if accelerator else {}
        allowed = {"trust_remote_code": trust_remote_code, "allow_pickle": allow_pickle}
        run = open_existing(run, given | {name: True for name, value in allowed.items() if value}, notify=notify)
    folder, record = train(run, wanted, output, overwrite=overwrite, verdict=verdict)
    return {**record, "folder": str(folder)}


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
    folders = [_folder(run) for run in runs]
    file, to = (None if path is None else Path(path) for path in (output, figures))
    return make_report(folders, file, to, format)[1][0]


def _folder(run: Run | str | Path) -> Path:
    return Path(run) if isinstance(run, (str, Path)) else run.folder.path


def _open(output: str | Path | None, options: dict[str, Any], **more: Any) -> Run:
    options = dict(options)
    for name in ("model", "tokenizer", "prompts", "overwrite", "notify", "recipe"):
        if name in options:
            more.setdefault(name, options.pop(name))
    from fairprune_framework.runs.open import open_run

    opened = open_run(output, options, **more)
    opened.folder.refuse_edited_plugins()
    return opened


def _continued(run: Run | None, output: str | Path | None, options: dict[str, Any], before: str | None) -> Run:
    if run is not None:
        options = dict(options)
        overwrite = options.pop("overwrite", run.folder.overwrite)
        recipe = with_options(run.recipe, options) if options else run.recipe
        opened = (
            run if recipe is run.recipe and overwrite == run.folder.overwrite else run.with_recipe(recipe, overwrite=overwrite)
        )
        opened.folder.refuse_edited_plugins()
        opened.plugins.renew()
    else:
        opened = _open(output, options)
    if before is not None:
        opened.folder.needs(before)
    return opened
