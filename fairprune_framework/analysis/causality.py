"""Has masking the plan a larger effect than masking random neurons of equal activation norm?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairprune_framework.analysis.common import divergence_evaluator, opened_run
from fairprune_framework.errors import UserError
from fairprune_framework.evaluation.random_sets import matched_sets, norms_of, random_means
from fairprune_framework.functional.paired_bootstrap import PairedChange
from fairprune_framework.runs.run import Run
from fairprune_framework.utilities.files import write_json
from fairprune_framework.utilities.progress import Notify, silent
from fairprune_framework.utilities.wording import number_of


def causal(run: Run | str | Path, draws: int = 20, notify: Notify = silent) -> dict[str, Any]:
    """Has masking the plan a larger effect than masking random neurons of the same layers and activation norms? And do the control
    contrasts react as much as the demographic ones? `p_value`: share of the draws, the plan included, with at least the same
    reduction of the divergence. Writes `causal.json`."""
    opened = opened_run(run, notify, "plan")
    plan = opened.read_plan()
    if plan.count == 0:
        raise UserError(f"the plan of {opened.folder} is empty: {plan.reason}")
    if draws < 1:
        raise UserError(f"--draws must be at least 1. Got {draws} instead.")
    split, evaluator = divergence_evaluator(opened)
    audited = opened.read_statistics() if opened.folder.has("audit") else None
    norms = norms_of(audited, opened.loaded, opened.calibration.scoring)
    layers = set(opened.recipe.protected_layers)
    allowed = {
        name: seen & (opened.loaded.architecture.sites[name].layer not in layers)
        for name, seen in opened.read_scores().observed.items()
    }
    means = random_means(plan, opened.loaded, opened.calibration.scoring)
    *sets, another = matched_sets(plan, norms, allowed, draws + 1, opened.recipe.seed, means)
    own = evaluator.measure(plan.sites, plan.scaling)
    random: list[dict[str, float | None]] = []
    for number, drawn in enumerate(sets, 1):
        after = evaluator.measure(drawn.units, drawn.scaling)
        both = [evaluator.change(after, control=control) for control in (False, True)]
        random.append(
            {name: None if c is None else c.change for name, c in zip(("change", "control_change"), both, strict=True)}
        )
        notify(f"random set {number} of {len(sets)}")
    effects = {name: evaluator.change(own, control=control) for name, control in (("demographic", False), ("control", True))}
    demographic = effects["demographic"]
    change = None if demographic is None else demographic.change
    as_low = sum(each["change"] is not None and change is not None and each["change"] <= change for each in random)
    answer = {
        "format": "fairprune-causal/1",
        "split": split,
        "units": plan.count,
        "operator": plan.operator,
        **{name: None if effect is None else _effect(effect) for name, effect in effects.items()},
        "random": random,
        "p_value": (1 + as_low) / (1 + len(random)),
        "control_ratio": _control_ratio(effects),
        "norm_ratio": _norm_ratio(plan.sites, norms, another.units),
    }
    write_json(opened.folder / "causal.json", answer)
    return answer


def _effect(change: PairedChange) -> dict[str, Any]:
    return {name: getattr(change, name) for name in ("before", "after", "change", "ci_low", "ci_high", "p_value", "clusters")}


def _control_ratio(effects: Mapping[str, PairedChange | None]) -> float | None:
    """The relative change of the controls over that of the demographic contrasts; 1: an equal reaction."""
    own, control = effects["demographic"], effects["control"]
    if own is None or control is None or control.change is None or not own.change:
        return None
    return control.change / own.change


def _norm_ratio(planned: Mapping[str, Sequence[int]], norms: Mapping[str, Tensor], drawn: Mapping[str, Sequence[int]]) -> float:
    """Median of (norm of the random neuron / norm of the planned one): the quality of the matching."""
    pairs = [
        norms[name][list(units)] / norms[name][list(planned[name][: len(units)])] for name, units in drawn.items() if units
    ]
    return torch.cat(pairs).median().item()


def render(answer: Mapping[str, Any]) -> str:
    """The answer as text."""
    lines = [f"masking {answer['units']} planned neurons, judged on {answer['split']}:"]
    for name in ("demographic", "control"):
        if (effect := answer[name]) is not None and effect["change"] is not None:
            interval = "" if effect["ci_low"] is None else f" [{effect['ci_low']:+.1%}, {effect['ci_high']:+.1%}]"
            lines.append(f"  {name:<12} {effect['change']:+.1%}{interval}, {number_of(effect['clusters'], 'template')}")
    changes = [each["change"] for each in answer["random"] if each["change"] is not None]
    if changes:
        lines.append(f"  random sets  {min(changes):+.1%} to {max(changes):+.1%}, {len(changes)} of equal activation norm")
    lines.append(f"  p = {answer['p_value']:.3f} for an equal reduction by a random set")
    if answer["control_ratio"] is not None:
        lines.append(f"  controls react {answer['control_ratio']:.0%} as much as demographic contrasts")
    return "\n".join(lines)
