"""The arms of the record: what a name such as `article=recipe:article` or `chance=random:1` stands for, as a plan for one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import fairprune_framework as fp
from fairprune_framework.architecture import Architecture
from fairprune_framework.contrasts.schema import Contrast
from fairprune_framework.errors import UserError
from fairprune_framework.provenance import read_json, write_json
from fairprune_framework.surgery.masking import check_plan
from fairprune_framework.types import Plan

FORMS = "a plan file, a run folder, recipe:NAME, optipfair, or random:SEED"


def plan_of(
    spec: str,
    name: str,
    *,
    model: Any,
    model_name: str,
    tokenizer: Any,
    architecture: Architecture,
    fingerprint: str,
    prompts: str,
    contrasts: Sequence[Contrast],
    neurons: int,
    work: Path,
) -> Plan:
    """The plan of an arm: read, or made and kept in the work folder.

    Raises:
        UserError: no such form, or a plan for another model.
    """
    kept = work / "plans" / f"{name}.json"
    path = Path(spec)
    if path.is_dir():
        path /= "plan.json"
    if path.is_file():
        plan = Plan.from_json(read_json(path), str(path))
    elif kept.is_file():
        plan = Plan.from_json(read_json(kept), str(kept))
    else:
        kind, _, rest = spec.partition(":")
        if kind == "recipe":
            run = fp.audit(
                model=model,
                tokenizer=tokenizer,
                prompts=prompts,
                output=work / "runs" / name,
                recipe=rest,
                budget=f"{neurons}n",
                notify=print,
            )
            plan = fp.plan(fp.score(run)).plan
        elif kind == "random":
            plan = _plan(model_name, fingerprint, drawn(architecture, neurons, int(rest)), neurons)
        elif kind == "optipfair":
            plan = _plan(model_name, fingerprint, by_optipfair(model, tokenizer, architecture, contrasts, neurons), neurons)
        else:
            raise UserError(f"the arm {name!r} must be {FORMS}. Got {spec!r} instead.")
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_json(kept, plan.to_json())
    check_plan(plan, model, architecture)
    return plan


def _plan(model: str, fingerprint: str, sites: Mapping[str, Sequence[int]], neurons: int) -> Plan:
    count = sum(map(len, sites.values()))
    return Plan(
        model=model,
        fingerprint=fingerprint,
        operator="zero",
        sites={site: tuple(sorted(units)) for site, units in sites.items()},
        requested={"budget": f"{neurons}n"},
        achieved={"units": count},
    )


def drawn(architecture: Architecture, neurons: int, seed: int) -> dict[str, list[int]]:
    """So many units of all, each with the same chance."""
    places = [(name, unit) for name, site in architecture.sites.items() for unit in range(site.units)]
    chosen: dict[str, list[int]] = {name: [] for name in architecture.sites}
    for index in np.random.default_rng(seed).choice(len(places), neurons, replace=False):
        name, unit = places[index]
        chosen[name].append(unit)
    return chosen


def by_optipfair(
    model: Any, tokenizer: Any, architecture: Architecture, contrasts: Sequence[Contrast], neurons: int
) -> dict[str, list[int]]:
    """The highest `FairnessPruningScores` of each layer, as optipfair 0.4.2 computes them on the first two variants of `select`."""
    from optipfair.bias.activations import analyze_neuron_bias, compute_fairness_pruning_scores

    pairs = [
        (contrast.variants[0].text, contrast.variants[1].text)
        for contrast in contrasts
        if not contrast.control and contrast.split != "heldout"
    ]
    scores = compute_fairness_pruning_scores(model, analyze_neuron_bias(model, tokenizer, pairs, show_progress=False))
    layers = sorted(scores)
    names = {site.layer: name for name, site in architecture.sites.items()}
    share, rest = divmod(neurons, len(layers))
    return {names[layer]: scores[layer].topk(share + (place < rest)).indices.tolist() for place, layer in enumerate(layers)}
