"""How often the word `fairer` is given to what is not fairer, and to what others do: random sets of neurons, edits of the whole model,
plans of other recipes.

    python benchmarks/verdict_false_positives.py --run RUN --also article=RUN2/plan.json --work DIR \
        > benchmarks/verdict_false_positives_<model>_<yyyymm>.md

Each arm changes the model in memory, is measured on the held-out contrasts of the set, and goes through the rule that runs go
through. Arms: the edits of `verdict_arms`, the plans of `--run` and `--also NAME=PLAN.json`, and `random-i`: as many random neurons of
each layer as the plan of `--run` takes, matched by activation norm. The same random sets are the null of every arm, an arm of the null
without itself; with `--draws 0` the null is what the random sets of the run did. A random set whose demographic divergence does not
fall by its 99 % bound cannot be `fairer`: its controls and its cost are not measured. What was measured stays in the folder of
`--work`, so that a run that was stopped goes on; `--minutes` stops it, and the record is of the sets that were measured.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from common import bind, machine
from verdict_arms import Bench, Measured, edits

from fairprune_framework.api.types import Plan
from fairprune_framework.evaluation.judgement import verdict_inputs
from fairprune_framework.evaluation.random_sets import activation_norms, matched_sets
from fairprune_framework.evaluation.verdict import WORDS, Verdict, VerdictInputs, verdict_of
from fairprune_framework.surgery.masking import masked
from fairprune_framework.utilities.files import file_digest, read_json, write_json

RANDOM = "random-"
"""What names of random sets begin with."""


def inputs_of(measured: Measured, nulls: list[float]) -> VerdictInputs:
    """What the verdict on an arm rests on."""
    items, guard = measured
    return verdict_inputs(items, applied=True, why_not=None, guard=guard, random_changes=nulls, seed=0)


def fall(measured: Measured) -> float:
    """The change of the demographic divergence."""
    change = inputs_of(measured, []).divergence
    assert change is not None
    assert change.change is not None
    return change.change


def plans_of(options: argparse.Namespace) -> dict[str, Path]:
    """name -> file, that of the run first."""
    others = dict(one.split("=", 1) for one in options.also)
    return {options.name: options.run / "plan.json"} | {name: Path(path) for name, path in others.items()}


def arms_of(bench: Bench, options: argparse.Namespace) -> dict[str, Callable[[], Measured]]:
    """name -> measure, plans and edits first."""
    model, architecture = bench.loaded.model, bench.loaded.architecture
    arms: dict[str, Callable[[], Measured]] = {}

    def masking(units: Mapping[str, Any], scaling: Any) -> Callable[[], Measured]:
        return lambda: bench.changed(lambda: masked(model, architecture, units, scaling))

    for name, path in plans_of(options).items():
        other = Plan.from_json(read_json(path), str(path))
        arms[name] = masking(other.sites, other.scaling)
    arms |= edits(bench) if options.edits else {}
    plan = Plan.from_json(read_json(options.run / "plan.json"), str(options.run))
    allowed = {name: torch.ones(site.units, dtype=torch.bool) for name, site in architecture.sites.items()}
    norms = activation_norms(bench.loaded, bench.text.scoring) if options.draws else {}
    for index, drawn in enumerate(matched_sets(plan, norms, allowed, options.draws, 0)):
        arms[f"{RANDOM}{index}"] = partial(
            bench.may_be_fairer, partial(masked, model, architecture, drawn.units, drawn.scaling)
        )
    return arms


def measured_arms(arms: Mapping[str, Callable[[], Measured]], work: Path, minutes: float) -> dict[str, Measured]:
    """Measure, or take what an earlier call measured; when the time is over, without the random sets that are left."""
    found: dict[str, Measured] = {}
    start = monotonic()
    for index, (name, measure) in enumerate(arms.items(), 1):
        kept = work / f"{name}.json"
        if not kept.is_file():
            if name.startswith(RANDOM) and monotonic() - start > 60 * minutes:
                continue
            items, guard = measure()
            write_json(kept, {"items": items, "guard": guard})
        held = read_json(kept)
        found[name] = held["items"], held["guard"]
        print(f"[arms] {index} of {len(arms)}: {name} {fall(found[name]):+.1%}", file=sys.stderr, flush=True)
    return found


def row(name: str, inputs: VerdictInputs, verdict: Verdict) -> str:
    """A line of the table."""
    sides, margin, guard = inputs.specificity, inputs.margin, inputs.guard
    assert inputs.divergence is not None
    assert sides is not None
    assert guard is not None
    cells = [name, f"`{verdict.word}`", f"{inputs.divergence.change:+.1%}", f"{sides.controls.change.ratio - 1:+.1%}"]
    cells.append("-" if sides.ratio_of_ratios is None else f"{sides.ratio_of_ratios.ratio:.2f}")
    cells.append("-" if margin is None or margin.change is None else f"{margin.change:+.1%}")
    return "| " + " | ".join([*cells, f"{guard.increase:+.1%}", verdict.because]) + " |"


def main() -> None:
    """Run all arms and print the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--prompts", default="builtin:en")
    parser.add_argument(
        "--run", type=Path, required=True, help="finished run, whose plan's size per layer the random sets have"
    )
    parser.add_argument("--name", default="plan", help="what the arm of that plan is called")
    parser.add_argument("--also", action="append", default=[], metavar="NAME=PLAN.json")
    parser.add_argument("--edits", action=argparse.BooleanOptionalAction, default=True, help="the edits of verdict_arms too")
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no further random set after these")
    parser.add_argument("--limit", type=float, default=0.05, help="the guard's limit")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, required=True, help="folder that keeps what was measured")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    identity = {
        "model": options.model,
        "prompts": options.prompts,
        "limit": options.limit,
        "plans": {name: file_digest(path) for name, path in plans_of(options).items()},
    }
    bind(options.work, identity)
    bench = Bench(options.model, options.prompts, options.limit)
    measured = measured_arms(arms_of(bench, options), options.work, options.minutes)
    nulls = {name: fall(found) for name, found in measured.items() if name.startswith(RANDOM)}
    of_run = [] if nulls else read_json(options.run / "run.json").get("random_sets", [])
    inputs = {
        name: inputs_of(found, of_run or [value for other, value in nulls.items() if other != name])
        for name, found in measured.items()
    }
    words = {name: verdict_of(each) for name, each in inputs.items()}
    plan = read_json(options.run / "plan.json")
    counts = {word: sum(words[name].word == word for name in nulls) for word in WORDS}
    print(f"# What the verdict says of what is not fairer\n\n{machine()}; seed 0; `{options.model}`, `{options.prompts}`, ")
    print(
        f"{len(bench.contrasts)} held-out contrasts; {len(nulls) or len(of_run)} random sets of {plan['achieved']['units']:,} neurons.\n"
    )
    if nulls:
        print("| random sets | " + " | ".join(counts) + " |\n|---|" + "---|" * len(counts))
        print(f"| {len(nulls)} | " + " | ".join(map(str, counts.values())) + " |\n")
        falls = sorted(nulls.values())
        settled = sum(measured[name][1] is None for name in nulls)
        print(
            f"Of {settled} random sets the word was settled by their demographic contrasts alone, which do not fall by the 99 % bound:"
        )
        print(
            f"they are not `fairer`, whatever controls and perplexity do. Changes of the divergence: {falls[0]:+.1%} to {falls[-1]:+.1%}.\n"
        )
    print(
        "| arm | word | demographic | controls | ratio of ratios | margin | perplexity | because |\n|---|---|---|---|---|---|---|---|"
    )
    for name in [name for name in words if name not in nulls]:
        print(row(name, inputs[name], words[name]))
    print("\n```json\n" + json.dumps({name: found.to_json() for name, found in words.items()}) + "\n```")


if __name__ == "__main__":
    main()
