"""One neuron: the contrasts with the largest effect on it, its promoted and suppressed tokens, and why it was chosen or not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairprune_framework.analysis.common import opened_run
from fairprune_framework.api.types import Scores, Site
from fairprune_framework.evaluation.metrics.movement import MovementReader, described_movement, measure_movements
from fairprune_framework.models.neurons import located
from fairprune_framework.recipes.recipe import budget_of
from fairprune_framework.runs.run import Run
from fairprune_framework.utilities.progress import Notify, silent
from fairprune_framework.utilities.wording import number_of

MOST = 10
"""Maximum number of contrasts and tokens."""


def inspect(run: Run | str | Path, unit: str, notify: Notify = silent) -> dict[str, Any]:
    """Inspect one neuron of a run with scores.

    Args:
        unit: `SITE:I`; the number of the layer suffices if it has one site.

    Raises:
        UserError: no such site or unit, or no scores yet.
    """
    opened = opened_run(run, notify, "score")
    site, index = located(unit, opened.loaded.architecture.sites)
    scores = opened.read_scores()
    notify(f"streaming {number_of(len(opened.prompts.aligned), 'contrast')} past {site.name}")
    return {
        "format": "fairprune-inspection/1",
        "site": site.name,
        "layer": site.layer,
        "unit": index,
        "scores": _scores_of(scores, site, index),
        "choice": _why(opened, scores, site, index),
        "contrasts": moved_by(opened, site, index)[:MOST],
        **_tokens(opened, site, index),
    }


def _scores_of(scores: Scores, site: Site, index: int) -> dict[str, Any]:
    def placed(values: Mapping[str, Tensor], name: str) -> dict[str, Any]:
        mine = values[name][index].item()
        above = sum(int((found > mine).sum()) for found in values.values())
        return {"value": mine, "rank": above + 1, "rank_in_site": int((values[name] > mine).sum()) + 1}

    return {
        "units": sum(each.units for each in scores.sites.values()),
        "bias": placed(scores.bias, site.name),
        "importance": placed(scores.importance, site.name),
        "bias_by_category": {
            category: found[site.name][index].item() for category, found in scores.by_category.items() if site.name in found
        },
    }


def _why(run: Run, scores: Scores, site: Site, index: int) -> dict[str, Any]:
    """Whether the neuron is planned, and the first rule that explains it."""
    if not run.folder.has("plan"):
        return {"planned": None, "because": "the run has no plan yet"}
    plan, limits = run.read_plan(), budget_of(run.recipe)
    policy = run.recipe.policy.plugin if run.recipe.policy else "the policy"
    if index in plan.sites.get(site.name, ()):
        return {"planned": True, "because": f"chosen by {policy}: {number_of(plan.count, 'neuron')}, operator {plan.operator}"}
    mine = scores.bias[site.name][index].item()
    in_layer = [name for name, each in scores.sites.items() if each.layer == site.layer]
    planned_here = sum(len(plan.sites.get(name, ())) for name in in_layer)
    room = limits.room(scores.sites)[site.layer]
    chosen = [scores.bias[name][list(units)] for name, units in plan.sites.items() if units]
    lowest = torch.cat(chosen).min().item() if chosen else None
    ahead = sum(int((found > mine).sum()) for found in scores.bias.values())
    if site.layer in limits.protected_layers:
        because = f"layer {site.layer} is protected"
    elif not bool(scores.observed[site.name][index]):
        because = "no contrast of select reached it"
    elif scores.signed and mine <= 0:
        because = f"its bias {mine:.3g} is not above 0: its removal would not reduce the bias"
    elif lowest is None:
        because = f"nothing was planned: {plan.reason}"
    elif planned_here >= room:
        because = f"layer {site.layer} is full: {planned_here} of at most {room} neurons are planned there"
    elif len(plan.sites.get(site.name, ())) >= site.units - 1:
        because = "one neuron of each site is kept"
    elif mine < lowest:
        because = f"below the threshold: {ahead} neurons have more bias, and the lowest planned one has {lowest:.3g}"
    else:
        rank = sum(int((found > scores.importance[site.name][index]).sum()) for found in scores.importance.values()) + 1
        because = (
            f"{policy} passed it over: its bias is above the lowest planned, {lowest:.3g}; by importance it is number {rank}"
        )
    return {"planned": False, "because": because}


def moved_by(run: Run, site: Site, index: int) -> list[dict[str, Any]]:
    """All contrasts with the movement of the neuron (`metrics.movement`), the largest first."""
    texts, loaded = run.prompts.texts, run.loaded
    reader = MovementReader(loaded.architecture, {site.name: [index]}, run.prompts.aligned)
    measure_movements(loaded.model, loaded.architecture, reader, run.prompts.values, run.micro_batch_tokens)
    return [described_movement(texts[one.id], one) for one in reader.movements[site.name, index]]


def _tokens(run: Run, site: Site, index: int) -> dict[str, Any]:
    """Tokens with the largest increase and decrease of their logits by the neuron's output weights, through final norm and head."""
    from fairprune_framework.errors import FairpruneError
    from fairprune_framework.models.readout import readout_of
    from fairprune_framework.surgery.slices import weights_of

    try:
        read = readout_of(run.loaded.model)
    except FairpruneError as error:
        return {"promotes": None, "suppresses": None, "readout": str(error)}
    row = weights_of(run.loaded.model, site)["out"].reshape(site.units, site.unit_width, -1)[index].mean(0, keepdim=True)
    logits = read(row)[0]
    high, low = torch.topk(logits, MOST), torch.topk(-logits, MOST)

    def named(ids: Tensor, values: Tensor) -> list[dict[str, Any]]:
        return [
            {"token": run.loaded.tokenizer.decode([i]), "id": i, "logit": value}
            for i, value in zip(ids.tolist(), values.tolist(), strict=True)
        ]

    return {"promotes": named(high.indices, high.values), "suppresses": named(low.indices, -low.values), "readout": None}


def render(inspection: Mapping[str, Any]) -> str:
    """The answer as text, at most 100 columns wide."""
    scores, choice = inspection["scores"], inspection["choice"]
    word = {True: "planned", False: "not planned", None: "no plan"}[choice["planned"]]
    lines = [
        f"{inspection['site']}:{inspection['unit']}  {word}: {choice['because']}",
        "",
        *(
            f"{name:<11} {scores[name]['value']:>10.4g}   {scores[name]['rank']:,}. of {scores['units']:,}, "
            f"{scores[name]['rank_in_site']}. of its site"
            for name in ("bias", "importance")
        ),
    ]
    if scores["bias_by_category"]:
        parts = sorted(scores["bias_by_category"].items(), key=lambda item: -item[1])
        lines.append("  " + ", ".join(f"{category} {value:.3g}" for category, value in parts))
    if inspection["promotes"]:
        lines += ["", "promotes    " + " ".join(repr(each["token"]) for each in inspection["promotes"])]
        lines.append("suppresses  " + " ".join(repr(each["token"]) for each in inspection["suppresses"]))
    lines += ["", "moved most by"]
    for each in inspection["contrasts"][:5]:
        kind = f"{each['category']}{', control' if each['control'] else ''}"
        lines.append(f"  {each['movement']:.4g}  {each['id']} ({kind})")
        for variant in each["variants"][:4]:
            lines.append(f"      {variant['mean']:>+9.3g}  {variant['text'][:80]}")
    return "\n".join(lines)
