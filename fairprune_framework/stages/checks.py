"""Everything that can be wrong with the input of some stages is found here, before a folder is made or a file written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fairprune_framework.errors import UserError
from fairprune_framework.recipes.recipe import PLUGIN_KINDS, budget_of
from fairprune_framework.runs.run import Run

if TYPE_CHECKING:
    from fairprune_framework.auditing.demand import Demand


def prepare(run: Run, stages: tuple[str, ...]) -> None:
    """Look at what these stages need and are not done yet.

    Raises:
        UserError: what is wrong.
    """
    if {run.done(stage) for stage in stages if stage != "report"} <= {True}:  # a report is made of files alone
        return
    for kind in PLUGIN_KINDS:
        if getattr(run.recipe, kind) is not None:
            run.label(kind)
    if "score" in stages:
        budget_of(run.recipe)
        _ = (run.bias, run.importance, run.policy)
    if "audit" in stages:
        run.parallelism.check()
    if "read" in stages:
        _ = run.contrasts
    _ = run.model, run.architecture, run.fingerprint
    layers = {site.layer for site in run.architecture.sites.values()}
    if unknown := sorted(set(run.recipe.protected_layers) - layers):
        raise UserError(f"--protected-layers names layer {unknown[0]}; the model's are {min(layers)} to {max(layers)}")
    if run.recipe.calibration is not None:
        from fairprune_framework.calibration.text import from_file

        from_file(run.recipe.calibration, run.encoder, run.recipe.calibration_tokens, run.recipe.calibration_documents)
    if "read" in stages:
        _ = run.alignment
    if "evaluate" in stages:
        from fairprune_framework.evaluation.compare import check

        check(run, planning="plan" in stages)
    if "audit" in stages:
        from fairprune_framework.auditing.callback import ActivationStatisticsCallback

        _refuse_unrunnable(run, ActivationStatisticsCallback)
        _refuse_parallelism(run)
        if not run.alignment.selecting:
            raise UserError("no contrast may feed scores: all are controls, or of the split 'heldout'")
    elif ("score" in stages or "plan" in stages) and (missing := missing_statistics(run)):
        raise UserError(
            f"the audit in {run.folder} holds no {missing}: run `fairprune audit --overwrite` with these options first"
        )


def _refuse_unrunnable(run: Run, callback: Any) -> None:
    from fairprune_framework.selection.scoring import needs_of_scorer

    needs_of_scorer(run.bias, run.label("bias"))
    needs_of_scorer(run.importance, run.label("importance"))
    if run.policy.needs().probe and run.recipe.factor == "auto":
        raise UserError(f"{run.label('policy')} probes while it chooses, and needs a number for --factor: auto comes after it")
    callback(
        model=run.model,
        adapter=run.architecture.adapter,
        sites=list(run.architecture.sites.values()),
        statistics=demand_of(run).statistics,
        categories=(),
    )


def _refuse_parallelism(run: Run) -> None:
    """What a distributed audit cannot have."""
    parallelism = run.parallelism
    if not parallelism.is_distributed:
        return
    from fairprune_framework.stages.audit import check_parallelism

    check_parallelism(run)


def demand_of(run: Run) -> Demand:
    """What the plugins of a run want the audit to sum."""
    from fairprune_framework.auditing.demand import Demand

    layers = len({site.layer for site in run.architecture.sites.values()})
    return Demand.of([run.bias, run.importance, run.policy, *run.also], layers)


def missing_statistics(run: Run) -> str | None:
    """A statistic that the plugins want and the audit does not hold."""
    layers = len({site.layer for site in run.architecture.sites.values()})
    demand = demand_of(run)
    if demand.clusters and not run.statistics.cluster_counts:
        return "clusters of templates, which a policy resamples"
    return min(demand.names(layers) - set(run.statistics.statistics), default=None)
