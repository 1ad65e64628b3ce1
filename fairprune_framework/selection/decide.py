"""From a run to scores and a plan, without writing anything: what plugins are given, and the calls to them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fairprune_framework.api.interfaces import ImportanceScorer, SiteContext
from fairprune_framework.errors import UserError
from fairprune_framework.recipes.recipe import budget_of

if TYPE_CHECKING:
    from fairprune_framework.api.types import Plan, Scores
    from fairprune_framework.auditing.sums import Statistics
    from fairprune_framework.runs.run import Run
    from fairprune_framework.selection.scoring import Services


def scores_of(run: Run) -> Scores:
    """Both scorers of a run on the statistics of its audit; nothing is written."""
    from fairprune_framework.selection import scoring

    labels = (run.label("bias"), run.label("importance"))
    found = (run.statistics, run.model, run.architecture, run.bias, run.importance, labels, run.recipe.seed)
    return scoring.score(*found, services=services(run))


def rescored(run: Run, scores: Scores, statistics: Statistics) -> Scores:
    """The same with the bias of other statistics; importance stays: calibration text is not resampled."""
    from fairprune_framework.selection import scoring

    labels = (run.label("bias"), "importance")
    found = scoring.score(
        statistics, run.model, run.architecture, run.bias, _Unimportant(), labels, run.recipe.seed, services=services(run)
    )
    return replace(scores, bias=found.bias, by_category=found.by_category, observed=found.observed)


@dataclass(frozen=True, kw_only=True)
class _Unimportant(ImportanceScorer):
    """In the place of an importance scorer that need not run again."""

    def score(self, at: SiteContext) -> Tensor:
        return torch.zeros(at.site.units, dtype=torch.float64)


def plan_of(run: Run, scores: Scores) -> Plan:
    """What the policy of a run chooses by these scores; nothing is written."""
    from fairprune_framework.auditing.sums import CALIBRATION, resampled
    from fairprune_framework.selection.planning import make_plan, no_replicates, policy_context
    from fairprune_framework.selection.scoring import context, generator_for
    from fairprune_framework.surgery.slices import weights_of

    recipe, label = run.recipe, run.label("policy")
    operator, sites, served = recipe.operator or "remove", run.architecture.sites, services(run)
    needs = run.policy.needs()
    given = served.for_plugin(needs, None)
    statistics = cache(lambda: run.statistics)

    def at(name: str) -> Any:
        weights = weights_of(run.model, sites[name]) if needs.weights else {}
        return context(statistics(), CALIBRATION, 0, sites[name], weights, generator_for(recipe.seed, label, name), given)

    def replicates() -> Iterator[Scores]:
        for drawn in resampled(statistics(), needs.replicates, generator_for(recipe.seed, label, "replicates")):
            yield rescored(run, scores, drawn)

    if needs.replicates and not statistics().cluster_counts:
        raise UserError(
            f"{label} asks for bootstrap replicates, and the audit in {run.folder} kept no clusters: give --overwrite to audit "
            "again, or another --output"
        )
    generator = generator_for(recipe.seed, label)
    resampling = replicates if needs.replicates else no_replicates
    return make_plan(
        scores,
        run.policy,
        budget_of(recipe),
        policy_context(operator, recipe.max_perplexity_increase, at, generator, given["probe"], resampling),
        label,
        model=recipe.model or "in-memory",
        fingerprint=run.fingerprint,
        operator=operator,
        factor=recipe.multiplier(),
        search=served.probe(None) if served.probe and recipe.factor == "auto" else None,
    )


def services(run: Run) -> Services:
    """Readout, probes and attribute tokens, each made when a plugin that declared it asks."""
    from fairprune_framework.auditing.batches import compose
    from fairprune_framework.auditing.demand import selecting
    from fairprune_framework.contrasts.alignment import attribute_tokens
    from fairprune_framework.evaluation.probe import Prober
    from fairprune_framework.models.readout import readout_of
    from fairprune_framework.selection.scoring import Services

    @cache
    def prober() -> Prober:
        contrasts = selecting(run.aligned[0])
        batches = list(compose(contrasts, run.values, run.micro_batch_tokens))
        scoring_half = run.calibration.scoring
        return Prober(run.model, run.architecture, contrasts, batches, scoring_half, run.recipe.multiplier() or 0.0)

    return Services(
        readout=cache(lambda: readout_of(run.model)),
        probe=lambda category: prober().probe(category),
        attribute_tokens=cache(lambda: attribute_tokens(selecting(run.aligned[0]))),
    )
