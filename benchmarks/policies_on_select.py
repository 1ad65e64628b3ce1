r"""Which plans carry over to other templates? Cross-fitted over two halves of the templates that may select; nothing else is read.

    python benchmarks/policies_on_select.py --policy gates --budgets 0.2 --option cost=0.0005,0.001,0.002,0.004 \
        --option legitimate=true,false --record benchmarks/gates_on_select_smollm2-135m_202611.md
    python benchmarks/policies_on_select.py --policy knapsack --budgets 198n 400n --option cost=0.003,0.006 \
        --option specific=true --option legitimate=true --option recall=true \
        --record benchmarks/removal_on_select_smollm2-135m_202611.md

A plan is made on one half (contrasts, controls, legitimate contrasts; crossed controls go where their template goes) and measured on
the other, in both directions: held-out contrasts take no part, in the choice of a recipe either. Costs are those of the scoring half of
the calibration text, which importance was scored on, and of the other half. With `--passages FILE`, a .jsonl file of the field `text`,
also what the plans do to the last word of each: log p in nats a word, and the share of those still predicted; of novels, say, with a
last word that was named before, which is what LAMBADA asks and no part of LAMBADA.

How plans carry over to texts of another style, and what more contrasts are worth: `--prompts builtin:en-wide` with `--measure-in
builtin:en` or `--measure-outside builtin:en`; with `--choose-in builtin:en` all contrasts of that set choose, and both halves of the others
are measured. `--choose-half`: every half chooses by half of its templates.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from common import give, machine

from fairprune_framework import discovery
from fairprune_framework.api.types import Budget, Choice, Scores
from fairprune_framework.auditing.audit import audit
from fairprune_framework.auditing.demand import Demand
from fairprune_framework.auditing.statistics import CALIBRATION, Statistics
from fairprune_framework.contrasts.alignment import AlignedContrast
from fairprune_framework.contrasts.builtin import builtin
from fairprune_framework.contrasts.formats import rows
from fairprune_framework.functional.divergence import generalised_js
from fairprune_framework.functional.next_token import legitimate_margin
from fairprune_framework.runs.open import open_run
from fairprune_framework.selection.contexts import context, generator_for
from fairprune_framework.selection.planning import policy_context
from fairprune_framework.selection.scoring import score
from fairprune_framework.surgery.masking import masked

ROLES = ("demographic", "control", "legitimate")
LABEL = "policy"


def half_of(contrast: AlignedContrast, which: str = "") -> int:
    """0 or 1: the same for all that stand in one template."""
    key = contrast.neutral_of or f"{contrast.category}/{contrast.template_id}"
    return zlib.crc32((which + key).encode()) % 2


def ids_of(prompts: str | None) -> frozenset[str] | None:
    """The contrasts of a built-in set, `builtin:NAME`."""
    return None if prompts is None else frozenset(each.id for each in builtin(prompts.removeprefix("builtin:")))


@dataclass(frozen=True, kw_only=True)
class Sides:
    """Which contrasts of the prompts choose and which are measured, by the sets that hold them; None: all."""

    choose_in: frozenset[str] | None = None
    measure_in: frozenset[str] | None = None
    measure_outside: frozenset[str] | None = None
    choose_half: bool = False

    def choosing(self, halves: Sequence[Sequence[AlignedContrast]], half: int) -> list[AlignedContrast]:
        """What chooses the plan that is measured on the other half."""
        if self.choose_in is not None:
            return [one for each in halves for one in each if one.id in self.choose_in]
        return [one for one in halves[half] if not (self.choose_half and half_of(one, "q"))]

    def measured(self, half: Sequence[AlignedContrast]) -> list[AlignedContrast]:
        """What is measured of a half."""
        outside = (self.measure_outside or frozenset()) | (self.choose_in or frozenset())
        return [one for one in half if one.id not in outside and (self.measure_in is None or one.id in self.measure_in)]


class Bench:
    """A model and its `select` contrasts, in two halves."""

    def __init__(
        self,
        model: str,
        prompts: str,
        policy: str,
        options: Mapping[str, Any],
        threads: int,
        passages: str | None = None,
        sides: Sides | None = None,
    ) -> None:
        torch.set_num_threads(threads)
        self.policy = policy
        sides = sides or Sides()
        self.run = open_run(None, {}, recipe="gates", model=model, prompts=prompts, notify=say)
        loaded, given = self.run.loaded, self.run.prompts
        loaded.to_device()
        self.model, self.architecture = loaded.model, loaded.architecture
        every = [one for one in (*given.aligned, *given.legitimate) if one.split == "select"]
        halves = [[one for one in every if half_of(one) == half] for half in (0, 1)]
        self.halves = [sides.measured(half) for half in halves]
        built = (*SCORERS, ("policy", policy, options))
        self.plugins = [discovery.build(kind, name, chosen) for kind, name, chosen in built]
        self.fitted = [self.fit(sides.choosing(halves, 0))]
        self.fitted += self.fitted if sides.choose_in is not None else [self.fit(sides.choosing(halves, 1))]
        self.before = [self.measured(half) for half in self.halves]
        self.cost_before = self.losses()
        self.passages = [] if passages is None else [self._split(str(row.data["text"])) for row in rows(Path(passages))]
        self.words_before = self.last_words()

    def _split(self, text: str) -> tuple[list[int], list[int]]:
        """Token ids before the last word, and of it."""
        whole, before = (self.run.loaded.encoder.ids(one) for one in (text, text.rsplit(" ", 1)[0]))
        return whole[: len(before)], whole[len(before) :]

    def fit(self, half: Sequence[AlignedContrast]) -> tuple[Scores, Statistics]:
        """Scores and sums of one half."""
        demand = Demand.of(self.plugins, len(self.run.loaded.layers))
        sides = {role: [one for one in half if one.role == role] for role in ROLES}
        say(f"auditing {', '.join(f'{len(side)} {role}' for role, side in sides.items())}")
        statistics, _ = audit(
            self.model,
            self.architecture,
            sides["demographic"],
            self.run.prompts.values,
            demand,
            controls=sides["control"],
            legitimate=sides["legitimate"],
            calibration=self.run.calibration,
            accelerator=self.run.recipe.accelerator,
        )
        bias, importance, _ = cast(Any, self.plugins)
        return score(statistics, self.model, self.architecture, bias, importance, ("bias", "importance")), statistics

    def choice(self, half: int, budget: str, options: Mapping[str, Any]) -> Choice:
        """What the policy takes with the scores of one half."""
        scores, statistics = self.fitted[half]
        policy: Any = discovery.build("policy", self.policy, options)

        def at(name: str) -> Any:
            site = self.architecture.sites[name]
            return context(statistics, CALIBRATION, None, site, policy.needs(), {}, generator_for(0, LABEL, name))

        found: Choice = policy.select(scores, Budget.parse(budget), policy_context("scale", 0.05, at, generator_for(0, LABEL)))
        return found

    @torch.inference_mode()
    def measured(self, half: Sequence[AlignedContrast]) -> dict[str, dict[str, list[float]]]:
        """role -> category -> divergence or margin of each contrast."""
        found: dict[str, dict[str, list[float]]] = {role: defaultdict(list) for role in ROLES}
        device = self.run.loaded.device
        for contrasts in batched(half, 8):
            every = [variant.ids for contrast in contrasts for variant in contrast.variants]
            ids = torch.zeros(len(every), max(map(len, every)), dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, tokens in enumerate(every):
                ids[row, : len(tokens)], mask[row, : len(tokens)] = torch.tensor(tokens), 1
            ids, mask = ids.to(device), mask.to(device)
            hidden = self.model.get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state  # type: ignore[operator]
            last = hidden[torch.arange(len(every), device=device), mask.sum(1) - 1]
            logits = self.model.get_output_embeddings()(last).cpu()  # type: ignore[operator]
            place = 0
            for contrast in contrasts:
                own = logits[place : place + len(contrast.variants)]
                place += len(contrast.variants)
                if contrast.role == "legitimate":
                    value = legitimate_margin(own.log_softmax(-1), contrast.right)
                else:
                    value = float(generalised_js(own.unsqueeze(0), torch.ones(1, len(own)).bool()))
                found[contrast.role][contrast.category].append(value)
        return found

    @torch.inference_mode()
    def losses(self) -> list[float]:
        """Mean loss a token, nats, of the scoring and of the judging half of the text."""
        means = []
        for documents in (self.run.calibration.scoring, self.run.calibration.judging):
            total, count = 0.0, 0
            for document in documents:
                ids = torch.tensor([document], device=self.run.loaded.device)
                total += float(self.model(input_ids=ids, labels=ids).loss) * (len(document) - 1)
                count += len(document) - 1
            means.append(total / count)
        return means

    @torch.inference_mode()
    def last_words(self) -> list[tuple[float, bool]]:
        """Of each passage, log p of its last word after the others, nats, and whether each token of it was the likeliest."""
        found = []
        for before, word in self.passages:
            ids = torch.tensor([[*before, *word]], device=self.run.loaded.device)
            logits = self.model(input_ids=ids, logits_to_keep=len(word) + 1).logits[0, :-1].float().log_softmax(-1).cpu()
            asked = torch.tensor(word)
            found.append((float(logits.gather(1, asked[:, None]).sum()), bool((logits.argmax(1) == asked).all())))
        return found

    def recall(self, after: Sequence[tuple[float, bool]]) -> list[float]:
        """Mean change of log p, nats a word, its standard error, and words still predicted as a share of those that were."""
        changes = torch.tensor([b - a for (a, _), (b, _) in zip(self.words_before, after, strict=True)], dtype=torch.float64)
        kept = sum(hit for _, hit in after) / sum(hit for _, hit in self.words_before)
        return [float(changes.mean()), float(changes.std() / len(changes) ** 0.5), kept]

    def row(self, budget: str, options: Mapping[str, Any]) -> tuple[list[int], list[float], list[list[float]]]:
        """Neurons planned on each half; relative changes of divergence, controls and margin on the other halves, the ratio of ratios, and
        of perplexity; what each half's plan does to last words, where there are passages."""
        after: list[dict[str, dict[str, list[float]]]] = []
        costs, counts, recalled = [], [], []
        for half in (0, 1):
            choice = self.choice(half, budget, options)
            units = {name: each.tolist() for name, each in choice.units.items()}
            factors = {name: each.tolist() for name, each in choice.factors.items()}
            counts.append(sum(map(len, units.values())))
            with masked(self.model, self.architecture, units, factors or 0.0):
                after.append(self.measured(self.halves[1 - half]))
                costs.append([math.exp(b - a) - 1 for a, b in zip(self.cost_before, self.losses(), strict=True)])
                recalled += [self.recall(self.last_words())] if self.passages else []
        ratios = [ratio(self.before[::-1], after, role) for role in ROLES]
        both = ratios[0] / ratios[1]
        return counts, [*(value - 1 for value in ratios), both, *(sum(each) / 2 for each in zip(*costs, strict=True))], recalled


def ratio(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], role: str) -> float:
    """Macro mean over categories after, over that before; both halves together."""

    def macro(sides: Sequence[Mapping[str, Any]]) -> float:
        joined: dict[str, list[float]] = defaultdict(list)
        for side in sides:
            for category, values in side[role].items():
                joined[category] += values
        return sum(sum(values) / len(values) for values in joined.values()) / len(joined)

    return macro(after) / macro(before)


def batched(items: Sequence[AlignedContrast], size: int) -> Iterable[Sequence[AlignedContrast]]:
    """In order of length, so that little is padding."""
    ordered = sorted(items, key=lambda one: one.length)
    return (ordered[i : i + size] for i in range(0, len(ordered), size))


def say(text: str) -> None:
    print(f"[policies_on_select] {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


SCORERS: tuple[tuple[Any, str, dict[str, Any]], ...] = (
    ("bias", "attribution", {}),
    ("importance", "taylor", {"power": 2, "labels": "model"}),
)


def values_of(text: str) -> tuple[str, list[Any]]:
    """`cost=0.1,0.2` -> the name and its values."""
    name, _, values = text.partition("=")
    return name, [json.loads(value) for value in values.split(",")]


def main() -> None:
    """Measure every combination and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--prompts", default="builtin:en")
    parser.add_argument("--policy", default="gates")
    parser.add_argument("--budgets", nargs="+", default=["0.2"])
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE,VALUE", help="values to try, as JSON")
    parser.add_argument("--passages", help="a .jsonl file of the field `text`, whose last words are asked")
    parser.add_argument("--choose-in", metavar="SET", help="all contrasts of this set choose; the others are measured")
    parser.add_argument("--measure-in", metavar="SET", help="measure contrasts of this set alone")
    parser.add_argument("--measure-outside", metavar="SET", help="measure contrasts that this set lacks")
    parser.add_argument("--choose-half", action="store_true", help="choose by half of the templates of each half")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--record", help="the .md file to write; by default it is printed")
    words = parser.parse_args()
    grid = dict(map(values_of, words.option))
    every = [dict(zip(grid, chosen, strict=True)) for chosen in itertools.product(*grid.values())]
    sides = Sides(
        choose_in=ids_of(words.choose_in),
        measure_in=ids_of(words.measure_in),
        measure_outside=ids_of(words.measure_outside),
        choose_half=words.choose_half,
    )
    bench = Bench(words.model, words.prompts, words.policy, every[0], words.threads, words.passages, sides)
    last = "last words, nats (standard error), kept |" if words.passages else ""
    lines = [
        f"# The policy `{words.policy}` cross-fitted on `select` of `{words.prompts}`, {words.model}",
        "",
        f"{time.strftime('%Y-%m-%d')}; {machine()}; float32, seed 0. Fitted on one half of the templates, measured on the other,",
        "both ways: `benchmarks/policies_on_select.py`. No held-out contrast was read.",
        "",
        f"| options | budget | neurons | demographic | controls | margin | ratio of ratios | perplexity, scoring, other text | {last}",
        "|---|---|---|---|---|---|---|---|" + "---|" * bool(last),
    ]
    for budget, options in itertools.product(words.budgets, every):
        counts, row, recalled = bench.row(budget, options)
        named = ", ".join(f"{name} {value}" for name, value in options.items()) or "none"
        demographic, controls, margin, both, scoring, other = row
        lines.append(
            f"| {named} | {budget} | {counts[0]}, {counts[1]} | {demographic:+.1%} | {controls:+.1%} | {margin:+.1%} | {both:.2f} "
            f"| {scoring:+.2%}, {other:+.2%} |"
        )
        if recalled:
            lines[-1] += " " + ", ".join(f"{change:+.3f} ({error:.3f}), {kept:.0%}" for change, error, kept in recalled) + " |"
        say(lines[-1])
    text = "\n".join(lines) + "\n"
    give(text, words.record)


if __name__ == "__main__":
    main()
