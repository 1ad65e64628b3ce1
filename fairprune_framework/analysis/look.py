"""A quick look at the scores of a run, from what its audit holds: the highest neurons, other scorers beside them, and what masking does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from fairprune_framework import discovery
from fairprune_framework.analysis.common import opened_run, rank_correlations, ratio, top_units
from fairprune_framework.api.declared import needs_of
from fairprune_framework.api.interfaces import BiasScorer
from fairprune_framework.api.types import Scores
from fairprune_framework.auditing.demand import Demand, selecting
from fairprune_framework.errors import FairpruneError, UserError
from fairprune_framework.evaluation.masked_evaluator import MaskedEvaluator
from fairprune_framework.runs.run import Run
from fairprune_framework.selection.decide import services
from fairprune_framework.selection.scoring import score
from fairprune_framework.utilities.progress import Notify, silent
from fairprune_framework.utilities.wording import number_of

BUDGET, CONTRASTS = 32, 60
"""Neurons that are masked for a look, and contrasts that are measured: enough to see whether anything happens, within seconds."""


def look(run: Run | str | Path, top: int = 10, budget: int = BUDGET, notify: Notify = silent) -> dict[str, Any]:
    """What the bias scores of a run found. Nothing is audited and nothing written: this is for the author's own loop.

    Args:
        run: a run, or its folder, with scores.
        top: neurons that are named.
        budget: neurons that are masked, and compared with those of other scorers.

    Returns: `top`; `others`: name -> Spearman's rank correlation over all neurons and the share of the highest that both find, for
        every scorer whose statistics the audit holds; `masked` and `random`: the relative change of `next-token-divergence` over a
        sample of the contrasts that scores may use, with the highest neurons masked, and with as many random ones.

    Raises:
        UserError: `top` or `budget` below 1.
    """
    opened = opened_run(run, notify, "score")
    if min(top, budget) < 1:
        raise UserError(f"a look needs at least 1 neuron. Got top={top}, budget={budget} instead.")
    scores = opened.read_scores()
    highest = top_units(scores, budget)
    others: dict[str, dict[str, float | None]] = {}
    for name, other in _others(opened).items():
        both = {(each["site"], each["unit"]) for each in top_units(other, budget)} & {(e["site"], e["unit"]) for e in highest}
        others[name] = {
            "rank_correlation": rank_correlations([scores, other])[0][1],
            "overlap": ratio(len(both), len(highest)),
        }
    contrasts = _sample(selecting(opened.prompts.aligned))
    evaluator = MaskedEvaluator(
        opened.loaded.model,
        opened.loaded.architecture,
        contrasts,
        opened.prompts.values,
        max_tokens=opened.micro_batch_tokens,
    )
    notify(f"masking {number_of(len(highest), 'neuron')}, on {number_of(len(contrasts), 'contrast')}")
    before = evaluator.mean(evaluator.original)
    changes = [
        _change(evaluator.mean(evaluator.measure(units)), before)
        for units in (_by_site(highest), _random(scores, len(highest)))
    ]
    return {
        "format": "fairprune-look/1",
        "scorer": opened.plugins.label("bias"),
        "top": highest[:top],
        "others": others,
        "budget": len(highest),
        "contrasts": len(contrasts),
        "masked": changes[0],
        "random": changes[1],
    }


def _change(after: float, before: float) -> float | None:
    return after / before - 1 if before else None


def _others(run: Run) -> dict[str, Scores]:
    """Name -> scores, of the installed bias scorers that the audit of a run serves as well."""
    statistics, sources, layers = run.read_statistics(), run.record.get("statistic_sources", {}), len(run.loaded.layers)
    own, found = run.plugins.bias, dict[str, Scores]()
    for entry in discovery.entries("bias"):
        try:
            plugin = cast(BiasScorer, discovery.build_of(entry))
            needs = needs_of(plugin)
            if plugin == own or needs.readout or needs.probe or not needs.statistics:
                continue  # what takes long is left to `ask scorers`
            if Demand.of((plugin,), layers).missing(statistics, sources, layers) is not None:
                continue
            found[entry.name] = score(
                statistics,
                run.loaded.model,
                run.loaded.architecture,
                plugin,
                cast(Any, discovery.build("importance", f"{discovery.OWN}:random")),
                (f"{entry.distribution}:{entry.name}", "importance"),
                run.recipe.seed,
                services=services(run.selection),
            )
        except FairpruneError:
            continue  # of a look nobody expects that every installed plugin works
    return found


def _sample(contrasts: list[Any]) -> list[Any]:
    """Evenly over the set, of every category."""
    step = max(1, -(-len(contrasts) // CONTRASTS))
    ordered = sorted(contrasts, key=lambda contrast: contrast.category)
    return ordered[::step]


def _by_site(units: list[dict[str, Any]]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for each in units:
        found.setdefault(each["site"], []).append(each["unit"])
    return found


def _random(scores: Scores, count: int) -> dict[str, list[int]]:
    generator = torch.Generator().manual_seed(0)
    drawn = {
        name: torch.rand(len(value), generator=generator, dtype=torch.float64) for name, value in sorted(scores.bias.items())
    }
    return _by_site(top_units(replace(scores, bias=drawn), count))


def render(answer: Mapping[str, Any]) -> str:
    """The answer as text."""

    def shown(change: float | None) -> str:
        return "not defined" if change is None else f"{change:+.1%}"

    named = [(f"{each['site']}:{each['unit']}", each["score"]) for each in answer["top"]]
    width = max((len(name) for name, _ in named), default=0)
    lines = [f"{answer['scorer']}: the highest neurons", ""]
    lines += [f"  {name:<{width}}  {value:.4g}" for name, value in named]
    lines += ["", f"other scorers from this audit: rank correlation over all neurons, share of the highest {answer['budget']}"]
    for name, other in sorted(answer["others"].items(), key=lambda pair: -(pair[1]["rank_correlation"] or 0)):
        correlation = "none" if other["rank_correlation"] is None else f"{other['rank_correlation']:.2f}"
        lines.append(f"  {name:<24} {correlation:>5}  {other['overlap'] or 0:>4.0%}")
    if not answer["others"]:
        lines.append("  none: `fairprune ask scorers` audits for all of them")
    lines += [
        "",
        f"next-token-divergence on {answer['contrasts']} contrasts that scores may use, {number_of(answer['budget'], 'neuron')} masked: "
        f"{shown(answer['masked'])}; as many random ones: {shown(answer['random'])}",
        "These contrasts chose the neurons: only held-out ones, in a run, can say whether it helps.",
    ]
    return "\n".join(lines)
