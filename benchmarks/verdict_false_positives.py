"""How often the word `fairer` is given to what is not fairer: random sets of neurons, a flatter softmax, damped MLPs, blind plans.

    python benchmarks/verdict_false_positives.py --prompts builtin:en --draws 100 > benchmarks/verdict_false_positives_<yyyymm>.md

Each arm changes the model in memory, is measured on the held-out contrasts of the set, and goes through the rule that runs go
through. Arms:

- `random-i`: as many random neurons of each layer as the plan of `--plan` takes, matched by activation norm;
- `temperature`: the logits divided by 1.5;
- `damping`: the output of every MLP times 0.9;
- plan files given with `--also NAME=PLAN.json`: those of other recipes.

The same random sets are the null of every arm, an arm of the null without itself.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import machine
from torch import nn

from fairprune_framework.api.types import Plan, Scaling
from fairprune_framework.auditing.batches import compose
from fairprune_framework.calibration.text import made
from fairprune_framework.contrasts.alignment import AlignedContrast
from fairprune_framework.contrasts.prompts import PromptSet
from fairprune_framework.evaluation.contrast_rows import items_of
from fairprune_framework.evaluation.judgement import JUDGING, verdict_inputs
from fairprune_framework.evaluation.metrics.contrasts import ContrastMeasure, measure_contrasts
from fairprune_framework.evaluation.metrics.next_token import NextTokenReader
from fairprune_framework.evaluation.metrics.perplexity import perplexity_change, text_loss
from fairprune_framework.evaluation.random_sets import activation_norms, matched_sets
from fairprune_framework.evaluation.verdict import WORDS, Verdict, verdict_of
from fairprune_framework.functional.paired_bootstrap import BOUND_LEVEL
from fairprune_framework.models.loaded import LoadedModel
from fairprune_framework.recipes.loading import load_recipe
from fairprune_framework.surgery.masking import masked
from fairprune_framework.utilities.files import read_json

Change = Callable[[], AbstractContextManager[None]]


@contextmanager
def scaled_outputs(modules: list[nn.Module], factor: float) -> Iterator[None]:
    """The output of each module times a factor."""
    hooks = [module.register_forward_hook(lambda _module, _inputs, output: output * factor) for module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class Bench:
    """The original model on the held-out contrasts and the guard's text, and what changes make of it."""

    def __init__(self, model: str, prompts: str, limit: float) -> None:
        self.recipe = load_recipe(None, {"model": model, "prompts": prompts, "calibration": "builtin:en"})
        self.loaded = LoadedModel(self.recipe)
        self.loaded.to_device()
        every = PromptSet(prompts, lambda: self.loaded.encoder)
        self.contrasts: list[AlignedContrast] = [one for one in (*every.aligned, *every.legitimate) if one.split == JUDGING]
        self.batches = list(compose(self.contrasts, every.values, 512))
        self.text = made(self.recipe, self.loaded, print)
        self.limit = limit
        self.before, self.loss = self._measured(), text_loss(self.loaded.model, self.text.judging)

    def _measured(self) -> list[ContrastMeasure]:
        reader = NextTokenReader(self.contrasts)
        return measure_contrasts(self.loaded.model, self.loaded.architecture, self.batches, taps=frozenset(), reader=reader)

    def items(self, change: Change) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The held-out items before and after a change, and what the guard saw."""
        with change():
            after, loss = self._measured(), text_loss(self.loaded.model, self.text.judging)
        cost = perplexity_change(self.loss, loss, level=2 * BOUND_LEVEL - 1).change
        assert cost is not None
        guard = {"increase": cost.value, "bound_high": cost.high, "limit": self.limit}
        return items_of(self.contrasts, self.before, after), guard


def judged(items: list[dict[str, Any]], guard: Mapping[str, Any], nulls: list[float]) -> Verdict:
    """The word for an arm."""
    inputs = verdict_inputs(items, applied=True, why_not=None, guard=guard, random_changes=nulls, seed=0)
    return verdict_of(inputs)


def fall(items: list[dict[str, Any]], guard: Mapping[str, Any]) -> float:
    """The change of the demographic divergence."""
    inputs = verdict_inputs(items, applied=True, why_not=None, guard=guard, random_changes=(), seed=0)
    assert inputs.divergence is not None
    assert inputs.divergence.change is not None
    return inputs.divergence.change


def main() -> None:
    """Run all arms and print the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--prompts", default="builtin:en")
    parser.add_argument("--plan", required=True, help="plan.json whose size per layer the random sets have")
    parser.add_argument("--also", action="append", default=[], metavar="NAME=PLAN.json")
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--limit", type=float, default=0.05, help="the guard's limit")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bench = Bench(options.model, options.prompts, options.limit)
    model, architecture = bench.loaded.model, bench.loaded.architecture
    plan = Plan.from_json(read_json(Path(options.plan)), options.plan)
    norms = activation_norms(bench.loaded, bench.text.scoring)
    allowed = {name: torch.ones(site.units, dtype=torch.bool) for name, site in architecture.sites.items()}

    def masking(units: Mapping[str, Any], factor: Scaling) -> Change:
        return lambda: masked(model, architecture, units, factor)

    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    mlps = [layer.mlp for layer in model.get_decoder().layers]  # type: ignore[operator]
    arms: dict[str, Change] = {
        f"random-{i}": masking(drawn.units, drawn.scaling)
        for i, drawn in enumerate(matched_sets(plan, norms, allowed, options.draws, 0))
    }
    arms |= {"temperature": lambda: scaled_outputs([head], 1 / 1.5), "damping": lambda: scaled_outputs(mlps, 0.9)}
    for name, path in [("plan", options.plan), *(one.split("=", 1) for one in options.also)]:
        other = Plan.from_json(read_json(Path(path)), path)
        arms[name] = masking(other.sites, other.scaling)
    measured: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {}
    for index, (name, change) in enumerate(arms.items(), 1):
        measured[name] = bench.items(change)
        print(f"[arms] {index} of {len(arms)}: {name} {fall(*measured[name]):+.1%}", file=sys.stderr, flush=True)
    nulls = {name: fall(*found) for name, found in measured.items() if name.startswith("random-")}
    words: dict[str, Verdict] = {
        name: judged(*found, [value for other, value in nulls.items() if other != name]) for name, found in measured.items()
    }
    counts = {word: sum(words[name].word == word for name in nulls) for word in WORDS}
    print(f"# What the verdict says of what is not fairer\n\n{machine()}; seed 0; `{options.model}`, `{options.prompts}`, ")
    print(f"{len(bench.contrasts)} held-out contrasts; {options.draws} random sets of {plan.count} neurons.\n")
    print("| random sets | " + " | ".join(counts) + " |\n|---|" + "---|" * len(counts))
    print(f"| {len(nulls)} | " + " | ".join(map(str, counts.values())) + " |\n")
    print("| arm | divergence | word | because |\n|---|---|---|---|")
    for name in [name for name in words if name not in nulls]:
        print(f"| {name} | {fall(*measured[name]):+.1%} | {words[name].word} | {words[name].because} |")
    print("\n```json\n" + json.dumps({name: replace(found, reasons=()).to_json() for name, found in words.items()}) + "\n```")


if __name__ == "__main__":
    main()
