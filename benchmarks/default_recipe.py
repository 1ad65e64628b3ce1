"""The search for the recipe `default`: twelve combinations of the three first plugins, all of them in the record.

    python benchmarks/default_recipe.py > benchmarks/default_recipe_<hardware>_<yyyymm>.md

{minmax, rank} x {variance, relative variance} x w in {0.5, 0.65, 0.8} on the embedded model and `builtin:en-1`, from one audit. A
combination passes where the guard holds (perplexity on the judging half of sampled text, at most +5 %); of those that pass, the
one with the lowest divergence on `select` is taken. `heldout` is not looked at. If none passes, the budget is halved, down to 0.0005.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from itertools import product
from statistics import fmean

import torch
from common import machine

import fairprune_framework as fp
from fairprune_framework.auditing.batches import compose
from fairprune_framework.auditing.demand import selecting
from fairprune_framework.contrasts.alignment import AlignedContrast
from fairprune_framework.evaluation.guard import guard
from fairprune_framework.evaluation.metrics.contrasts import ContrastMeasure, measure_contrasts
from fairprune_framework.surgery.masking import masked

LIMIT = 0.05


def macro(contrasts: Sequence[AlignedContrast], measured: Sequence[ContrastMeasure]) -> float:
    """Mean divergence over contrasts, then templates, then categories."""
    found = {m.id: m.divergence for m in measured}
    templates: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for contrast in contrasts:
        templates[contrast.category][contrast.template_id].append(found[contrast.id])
    return fmean(fmean(fmean(values) for values in by.values()) for by in templates.values())


def main() -> None:
    torch.set_num_threads(2)
    common = {"notify": lambda text: print(text, file=sys.stderr, flush=True)}
    run = fp.audit(model="smollm2-135m", prompts="builtin:en-1", recipe="variance", **common)
    contrasts = selecting(run.prompts.aligned)
    batches = list(compose(contrasts, run.prompts.values, run.micro_batch_tokens))

    def divergence(units: dict[str, tuple[int, ...]]) -> float:
        with masked(run.loaded.model, run.loaded.architecture, units):
            return macro(contrasts, measure_contrasts(run.loaded.model, run.loaded.architecture, batches, taps=frozenset()))

    base = divergence({})
    print("# The search for the recipe `default`\n")
    print(f"{machine()}; seed {run.recipe.seed}.\n")
    print(
        f"Embedded model smollm2-135m ({run.fingerprint[:12]}), `builtin:en-1`, {len(contrasts)} contrasts of `select`, "
        f"base divergence {base:.6f}"
    )
    print(f"nats; sampled text {run.calibration.hash[:12]}. Masked, float32. One audit serves all rows.\n")
    print("| budget | normalisation | bias | w | neurons | perplexity | guard | divergence on select | change |")
    print("|---|---|---|---|---|---|---|---|---|")
    budget, passed = 0.002, []
    while not passed and budget >= 0.0005:
        for relative, normalisation, weight in product((False, True), ("minmax", "rank"), (0.5, 0.65, 0.8)):
            options = {"bias": {"plugin": "variance", "relative": relative}, "budget": str(budget)}
            options["policy"] = {"plugin": "uniform", "weight": weight, "normalisation": normalisation}
            run = fp.plan(fp.score(run, overwrite=True, **options), overwrite=True)
            plan = run.read_plan()
            if plan.count == 0:
                print(f"| {budget} | {normalisation} | {'relative ' * relative}variance | {weight} | 0 | | | | |", flush=True)
                continue
            judged, _ = guard(run.loaded.model, run.loaded.architecture, plan.sites, run.calibration, LIMIT)
            after = divergence(dict(plan.sites))
            if judged.held:
                passed.append((after, relative, normalisation, weight))
            print(
                f"| {budget} | {normalisation} | {'relative ' * relative}variance | {weight} | {plan.count} | {judged.increase:+.1%} "
                f"| {'held' if judged.held else 'failed'} | {after:.6f} | {after / base - 1:+.1%} |",
                flush=True,
            )
        if not passed:
            budget /= 2
    if passed:
        after, relative, normalisation, weight = min(passed)
        print(
            f"\nTaken: {'relative ' * relative}variance, {normalisation}, w = {weight}, budget {budget}: "
            f"{after / base - 1:+.1%} on `select`."
        )
    else:
        print("\nNone passed at any budget down to 0.0005: the recipe abstains.")


if __name__ == "__main__":
    main()
