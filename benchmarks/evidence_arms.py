"""The arms of the record: what a name such as `article=recipe:article` or `chance=random:1@60` stands for, as a plan for one model.

`@N` after a form sets its neurons. `crows:odd` chooses on the odd rows of CrowS-Pairs, `occupations` on `occupations.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import occupations

import fairprune_framework as fp
from fairprune_framework.api.types import Plan
from fairprune_framework.contrasts.check import contrasts_of
from fairprune_framework.contrasts.schema import Contrast
from fairprune_framework.errors import UserError
from fairprune_framework.models.architecture import Architecture
from fairprune_framework.surgery.masking import check_plan
from fairprune_framework.utilities.files import read_json, write_json

FORMS = "a plan file, a run folder, recipe:NAME, optipfair, random:SEED, crows:odd, or occupations"
WEIGHED: dict[str, Any] = {
    "importance": {"plugin": "taylor", "power": 2},
    "policy": {"plugin": "protected-global", "protect": 0.02, "exchange": 0.5},
    "calibration": "sampled",
    "calibration_documents": 32,
}
TOWARDS = {
    objective: {"bias": {"plugin": "attribution", "objective": objective}, **WEIGHED}
    for objective in ("stereotype", "preference", "shared-preference")
}
"""The recipe `default` without `recall`, made to lower how much likelier stereotyping sentences are, or how often they are, by all
tokens or by those that both sentences share."""


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
    data: Path,
) -> Plan:
    """The plan of an arm: read, or made and kept in the work folder.

    Raises:
        UserError: no such form, or a plan for another model.
    """
    head, _, budget = spec.rpartition("@")
    if head and budget.isdigit():
        spec, neurons = head, int(budget)
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
        given = {"model": model, "tokenizer": tokenizer, "output": work / "runs" / name, "budget": f"{neurons}n"}
        if kind == "recipe":
            plan = fp.plan(fp.score(fp.audit(prompts=prompts, recipe=rest, notify=print, **given))).read_plan()
        elif spec in ("crows:odd", "occupations"):
            chosen, objective = (
                (occupations.contrasts(), "stereotype") if spec == "occupations" else (odd_rows(data), "preference")
            )
            found = fp.audit(prompts=chosen, recipe="default", notify=print, **TOWARDS[objective], **given)
            plan = fp.plan(fp.score(found)).read_plan()
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


def odd_rows(data: Path) -> list[Contrast]:
    """The odd rows of CrowS-Pairs, the first of which is row 1."""
    found = contrasts_of(str(data / "crows_pairs" / "crows_pairs_anonymized.csv"), bad="skip")[0]
    return [replace(contrast, split="select") for contrast in found if row_of(contrast.id) % 2 == 1]


def row_of(identity: str) -> int:
    """Row of CrowS-Pairs; ids count from 0."""
    return int(identity.rpartition("/")[2]) + 1


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
