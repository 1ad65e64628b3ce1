"""From statistics to scores and a plan, without writing anything: what plugins are given, and the calls to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from fairprune_framework.api.declared import needs_of
from fairprune_framework.api.interfaces import ImportanceScorer, SiteContext
from fairprune_framework.api.types import Plan, Scores
from fairprune_framework.auditing.demand import selecting
from fairprune_framework.auditing.replicates import resampled
from fairprune_framework.auditing.statistics import CALIBRATION, Statistics
from fairprune_framework.calibration.text import Calibration
from fairprune_framework.contrasts.alignment import attribute_tokens
from fairprune_framework.contrasts.prompts import PromptSet
from fairprune_framework.errors import RunFolderError, UserError, shown
from fairprune_framework.evaluation.masked_evaluator import MaskedEvaluator
from fairprune_framework.evaluation.probe import probe_of
from fairprune_framework.models.loaded import LoadedModel
from fairprune_framework.models.loading import public_name
from fairprune_framework.models.readout import readout_of
from fairprune_framework.recipes.recipe import Recipe, budget_of
from fairprune_framework.selection.contexts import Services, context, generator_for
from fairprune_framework.selection.planning import make_plan, no_replicates, policy_context
from fairprune_framework.selection.plugins import Plugins
from fairprune_framework.selection.scoring import score
from fairprune_framework.surgery.means import mean_activations
from fairprune_framework.surgery.slices import weights_of


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What a selection of neurons rests on; what is costly is made when it is asked for."""

    recipe: Recipe
    plugins: Plugins
    loaded: LoadedModel
    prompts: PromptSet
    calibration: Callable[[], Calibration]
    statistics: Callable[[], Statistics]
    """The result of the audit."""
    max_tokens: Callable[[], int]
    """Padded tokens per forward."""
    where: str
    """The run folder, for messages."""

    @cached_property
    def means(self) -> dict[str, Tensor]:
        """What the operator `mean` holds units at: their means on the scoring half of the calibration text."""
        return mean_activations(self.loaded.model, self.loaded.architecture, self.calibration().scoring)


def scores_of(selection: Selection) -> Scores:
    """Both scorers on the statistics of the audit."""
    plugins, loaded = selection.plugins, selection.loaded
    statistics = selection.statistics()
    if other := sorted(statistics.sites() - loaded.architecture.sites.keys()):
        raise RunFolderError(f"the statistics in {selection.where} hold {shown(other[0])}, which the model does not have")
    return score(
        statistics,
        loaded.model,
        loaded.architecture,
        plugins.bias,
        plugins.importance,
        (plugins.label("bias"), plugins.label("importance")),
        selection.recipe.seed,
        services=services(selection),
    )


def rescored(selection: Selection, scores: Scores, statistics: Statistics) -> Scores:
    """The same with the bias of other statistics; importance stays: calibration text is not resampled."""
    plugins, loaded = selection.plugins, selection.loaded
    again = score(
        statistics,
        loaded.model,
        loaded.architecture,
        plugins.bias,
        _Unimportant(),
        (plugins.label("bias"), "importance"),
        selection.recipe.seed,
        services=services(selection),
    )
    return replace(scores, bias=again.bias, by_category=again.by_category, observed=again.observed)


@dataclass(frozen=True, kw_only=True)
class _Unimportant(ImportanceScorer):
    """In the place of an importance scorer that need not run again."""

    def score(self, at: SiteContext) -> Tensor:
        return torch.zeros(at.site.units * at.site.unit_width, dtype=torch.float64)


def plan_of(selection: Selection, scores: Scores) -> Plan:
    """What the policy chooses by these scores."""
    recipe, policy, loaded = selection.recipe, selection.plugins.policy, selection.loaded
    label, operator = selection.plugins.label("policy"), recipe.operator or "remove"
    sites, served, needs = loaded.architecture.sites, services(selection), needs_of(policy, label)
    given = served.for_plugin(needs, None)
    statistics = cache(selection.statistics)

    def at(name: str) -> Any:
        weights = weights_of(loaded.model, sites[name]) if needs.weights else {}
        generator = generator_for(recipe.seed, label, name)
        return context(statistics(), CALIBRATION, None, sites[name], needs, weights, generator, given)

    def replicates() -> Iterator[Scores]:
        for drawn in resampled(statistics(), needs.replicates, generator_for(recipe.seed, label, "replicates")):
            yield rescored(selection, scores, drawn)

    if needs.replicates and not statistics().cluster_counts:
        raise UserError(
            f"{label} asks for bootstrap replicates, and the audit in {selection.where} kept no clusters: give --overwrite to "
            "audit again, or another --output"
        )
    generator = generator_for(recipe.seed, label)
    resampling = replicates if needs.replicates else no_replicates
    return make_plan(
        scores,
        policy,
        budget_of(recipe),
        policy_context(operator, recipe.max_perplexity_increase, at, generator, given["probe"], resampling),
        label,
        model=public_name(loaded.name),
        fingerprint=loaded.fingerprint,
        operator=operator,
        factor=recipe.multiplier(),
        means=(lambda: selection.means) if operator == "mean" else None,
        search=served.probe(None) if served.probe and recipe.factor == "auto" else None,
    )


def services(selection: Selection) -> Services:
    """Readout, probes and attribute tokens, each made when a plugin that declared it asks."""
    loaded, prompts = selection.loaded, selection.prompts

    @cache
    def evaluator() -> MaskedEvaluator:
        return MaskedEvaluator(
            loaded.model,
            loaded.architecture,
            selecting(prompts.aligned),
            prompts.values,
            documents=selection.calibration().scoring,
            max_tokens=selection.max_tokens(),
        )

    return Services(
        readout=cache(lambda: readout_of(loaded.model)),
        probe=lambda category: probe_of(
            evaluator(),
            selection.recipe.multiplier() or 0.0,
            category,
            (lambda: selection.means) if selection.recipe.operator == "mean" else None,
        ),
        attribute_tokens=cache(lambda: attribute_tokens(selecting(prompts.aligned))),
    )
