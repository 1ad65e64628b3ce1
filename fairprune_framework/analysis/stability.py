"""Would other templates have selected the same neurons?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from fairprune_framework.analysis.common import as_set, opened_run, ratio
from fairprune_framework.auditing.audit import audit
from fairprune_framework.auditing.demand import Demand, selecting
from fairprune_framework.auditing.replicates import resampled
from fairprune_framework.auditing.statistics import CONTROLS, LEGITIMATE, Statistics
from fairprune_framework.errors import UserError
from fairprune_framework.runs.run import Run
from fairprune_framework.selection.decide import plan_of, rescored
from fairprune_framework.utilities.files import write_json
from fairprune_framework.utilities.progress import Notify, silent


def stability(run: Run | str | Path, replicates: int = 100, notify: Notify = silent) -> dict[str, Any]:
    """Would other templates have selected the same neurons? The share of bootstrap replicates, over templates within each category,
    that select each planned neuron, and the mean Jaccard index of two replicates. This needs another audit with sums by groups of
    templates (at most 32 per category). Importance is not resampled. Writes `stability.json`."""
    opened = opened_run(run, notify, "score")
    if replicates < 2:
        raise UserError(f"--replicates must be at least 2. Got {replicates} instead.")
    statistics = _audited_by_cluster(opened, notify)
    scores = opened.read_scores()
    generator = torch.Generator().manual_seed(opened.recipe.seed)
    counts = {name: torch.zeros(site.units, dtype=torch.long) for name, site in scores.sites.items()}
    sets: list[set[tuple[str, int]]] = []
    for drawn in resampled(statistics, replicates, generator):
        plan = plan_of(opened.selection, rescored(opened.selection, scores, drawn))
        sets.append(as_set(plan))
        for name, units in plan.sites.items():
            counts[name][list(units)] += 1
    planned = as_set(plan_of(opened.selection, scores))
    frequency = {name: (count.double() / replicates) for name, count in counts.items()}
    shares = sorted((frequency[name][unit].item() for name, unit in planned), reverse=True)
    overlaps = [ratio(len(a & b), len(a | b)) or 0.0 for a, b in pairwise(sets)]
    ever = sorted(
        ((frequency[name][int(unit)].item(), name, int(unit)) for name in frequency for unit in counts[name].nonzero()),
        key=lambda entry: (-entry[0], entry[1], entry[2]),
    )
    answer = {
        "format": "fairprune-stability/1",
        "replicates": replicates,
        "groups": {
            category: sum(count > 0 for count in counts)
            for category, counts in zip(statistics.categories, statistics.cluster_counts, strict=True)
        },
        "planned": len(planned),
        "mean_frequency": sum(shares) / len(shares) if shares else None,
        "stable_75": sum(share >= 0.75 for share in shares),
        "mean_jaccard": sum(overlaps) / len(overlaps) if overlaps else None,
        "units": [
            {"site": name, "unit": unit, "frequency": share, "planned": (name, unit) in planned}
            for share, name, unit in ever[:500]
        ],
        "units_ever_chosen": len(ever),
    }
    write_json(opened.folder / "stability.json", answer)
    return answer


def _audited_by_cluster(run: Run, notify: Notify) -> Statistics:
    """Audit `select` again, with separate sums for clusters of templates."""
    contrasts = selecting(run.prompts.aligned)
    demand = replace(Demand.of([run.plugins.bias], len(run.loaded.layers)), clusters=True)
    notify(f"auditing {len(contrasts)} contrasts by clusters of templates")
    statistics, _ = audit(
        run.loaded.model,
        run.loaded.architecture,
        contrasts,
        run.prompts.values,
        demand,
        controls=selecting(run.prompts.aligned, CONTROLS),
        legitimate=selecting(run.prompts.legitimate, LEGITIMATE),
        calibration=run.calibration if demand.calibration else None,
        micro_batch_tokens=run.micro_batch_tokens,
        accelerator=run.recipe.accelerator,
    )
    run.loaded.to_device()
    return statistics


def render(answer: Mapping[str, Any]) -> str:
    """The answer as text."""
    if not answer["planned"]:
        return "the plan is empty: there is no stability to measure"
    return (
        f"of {answer['planned']} planned neurons, {answer['stable_75']} are selected by at least 75 % of {answer['replicates']} "
        f"replicates; on average {answer['mean_frequency']:.0%}; two replicates share {answer['mean_jaccard']:.0%} (Jaccard)"
    )
