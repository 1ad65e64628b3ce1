"""A leaderboard of all bias scorers at one budget, cross-fitted over two halves of the templates that may select; nothing else is read.

    python benchmarks/leaderboard.py --work runs/leaderboard --record benchmarks/leaderboard_smollm2-135m_202611.md

Each scorer, with its defaults, scores one half of the templates of `select`; its highest neurons over all layers (the policy `global`) are
masked, and the other half judges, in both directions: every contrast is judged once, by neurons that it had no part in choosing.
Random sets of as many neurons are the floor. With `--controls` these are judged beside; with `--importance`, what the lowest neurons of
each importance scorer cost. Every measurement is kept in the work folder, so that a call goes on where the last one stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from common import bind, give, machine
from policies_on_select import half_of
from scipy.stats import rankdata

from fairprune_framework import discovery
from fairprune_framework.api.types import Budget, Scores
from fairprune_framework.auditing.audit import audit
from fairprune_framework.auditing.demand import Demand
from fairprune_framework.contrasts.alignment import AlignedContrast, attribute_tokens
from fairprune_framework.errors import FairpruneError
from fairprune_framework.evaluation.masked_evaluator import MaskedEvaluator
from fairprune_framework.functional.paired_bootstrap import PairedChange, paired_change
from fairprune_framework.models.readout import readout_of
from fairprune_framework.runs.open import open_run
from fairprune_framework.selection.contexts import Services, generator_for
from fairprune_framework.selection.planning import policy_context, trim
from fairprune_framework.selection.scoring import score
from fairprune_framework.utilities.files import write_text

FEWER = {"integrated-gradients": {"steps": 2}}
"""Options of scorers that would take hours by default, named in the record."""
Units = Mapping[str, Sequence[int]]


def say(text: str) -> None:
    print(f"[leaderboard] {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


class Kept:
    """What was measured, in one JSON file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def get(self, name: str, measure: Any) -> Any:
        if name not in self.found:
            self.found[name] = measure()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, json.dumps(self.found))
        return self.found[name]


class Bench:
    """A model and its `select` contrasts in two halves."""

    def __init__(self, model: str, prompts: str, budget: int, work: Path, documents: int = 32, controls: bool = True) -> None:
        self.run = open_run(None, {}, recipe="variance", model=model, prompts=prompts, notify=say)
        loaded, given = self.run.loaded, self.run.prompts
        self.budget, self.work = budget, work
        self.sites = loaded.architecture.sites
        select = [one for one in (*given.aligned, *given.legitimate) if one.split == "select"]
        self.halves = [[one for one in select if half_of(one) == half] for half in (0, 1)]
        self.documents, self.controls = self.run.calibration.scoring[:documents], controls
        self.kept = Kept(work / "measured.json")

    def side(self, half: int, role: str) -> list[AlignedContrast]:
        return [one for one in self.halves[half] if one.role == role]

    def scores(self, half: int, names: Sequence[tuple[str, str]]) -> dict[str, Mapping[str, torch.Tensor]]:
        """`kind name` -> site -> (N,), of scorers that could be asked; from one audit of a half."""
        path = self.work / f"scores-{half}.pt"
        if path.exists():
            return cast(dict[str, Mapping[str, torch.Tensor]], torch.load(path, weights_only=True))
        loaded = self.run.loaded
        plugins = {f"{kind} {name}": discovery.build(cast(Any, kind), name, FEWER.get(name, {})) for kind, name in names}
        say(f"half {half}: auditing {len(self.side(half, 'demographic'))} contrasts for {len(plugins)} scorers")
        statistics, outcome = audit(
            loaded.model,
            loaded.architecture,
            self.side(half, "demographic"),
            self.run.prompts.values,
            Demand.of(list(plugins.values()), len(loaded.layers)),
            controls=self.side(half, "control"),
            legitimate=self.side(half, "legitimate"),
            calibration=self.run.calibration,
            accelerator="cpu",
        )
        say(f"half {half}: audited in {outcome.seconds:.0f} s")
        tokens = attribute_tokens(self.side(half, "demographic"))
        services = Services(readout=lambda: readout_of(loaded.model), attribute_tokens=lambda: tokens)
        lone = {"bias": discovery.build("bias", "variance"), "importance": discovery.build("importance", "l2-norm")}
        found: dict[str, Mapping[str, torch.Tensor]] = {}
        for label, plugin in plugins.items():
            kind = label.partition(" ")[0]
            both = {**lone, kind: plugin}
            bias, importance = cast(Any, both["bias"]), cast(Any, both["importance"])
            try:
                scores: Scores = score(
                    statistics, loaded.model, loaded.architecture, bias, importance, ("bias", "importance"), services=services
                )
            except FairpruneError as error:
                say(f"{label}: {error}")
                continue
            found[label] = dict(scores.bias if kind == "bias" else scores.importance)
        self.work.mkdir(parents=True, exist_ok=True)
        torch.save(found, path)
        return found

    def highest(self, values: Mapping[str, torch.Tensor], count: int) -> dict[str, list[int]]:
        """The units that the policy `global` takes."""
        names = list(self.sites)
        observed = {name: torch.ones(self.sites[name].units, dtype=torch.bool) for name in names}
        lowest = min(float(values[name].min()) for name in names)
        bias = {name: values[name] - min(lowest, 0) + 1e-12 for name in names}
        scores = Scores(sites=self.sites, bias=bias, importance=bias, by_category={}, observed=observed)
        budget, policy = Budget(amount=count, unit="total"), cast(Any, discovery.build("policy", "global"))
        context = policy_context("remove", 0.05, None, generator_for(0, "leaderboard"))
        kept, _ = trim(policy.select(scores, budget, context), scores, budget)
        return {name: sorted(units.tolist()) for name, units in kept.items()}

    def drawn(self, seed: int, count: int) -> dict[str, list[int]]:
        generator = torch.Generator().manual_seed(seed)
        every = [(name, unit) for name, site in self.sites.items() for unit in range(site.units)]
        chosen: dict[str, list[int]] = {}
        for place in torch.randperm(len(every), generator=generator)[:count].tolist():
            chosen.setdefault(every[place][0], []).append(every[place][1])
        return {name: sorted(units) for name, units in chosen.items()}

    def evaluator(self, half: int) -> MaskedEvaluator:
        loaded = self.run.loaded
        judged = [*self.side(half, "demographic"), *(self.side(half, "control") if self.controls else ())]
        return MaskedEvaluator(loaded.model, loaded.architecture, judged, self.run.prompts.values, documents=self.documents)


def changes(
    bench: Bench, before: Sequence[Mapping[str, float]], after: Sequence[Mapping[str, float]], role: str
) -> PairedChange:
    """The change over both halves, each contrast judged once."""
    rows = [(one, before[half][one.id], after[half][one.id]) for half in (0, 1) for one in bench.side(half, role)]
    return paired_change(
        [row[1] for row in rows],
        [row[2] for row in rows],
        [row[0].category for row in rows],
        [f"{row[0].category}/{row[0].template_id}" for row in rows],
    )


def shown(change: PairedChange | None) -> str:
    if change is None or change.change is None:
        return "none"
    if change.ci_low is None or change.ci_high is None:
        return f"{change.change:+.1%}"
    return f"{change.change:+.1%} [{change.ci_low:+.1%}, {change.ci_high:+.1%}]"


def correlations(values: Mapping[str, Sequence[Mapping[str, torch.Tensor]]]) -> dict[str, dict[str, float]]:
    """Spearman's over all neurons, the mean of both halves."""
    ranks = {
        name: [rankdata(torch.cat([half[site] for site in sorted(half)]).numpy()) for half in halves]
        for name, halves in values.items()
    }
    return {
        one: {
            other: float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(ranks[one], ranks[other], strict=True)]))
            for other in ranks
        }
        for one in ranks
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--prompts", default="builtin:en")
    parser.add_argument("--budget", type=int, default=92, help="neurons that are masked")
    parser.add_argument("--least", type=int, default=2304, help="neurons of the lowest importance that are masked")
    parser.add_argument("--random", type=int, default=10, help="sets of random neurons")
    parser.add_argument("--only", nargs="+", help="bias scorers; by default all")
    parser.add_argument("--judge", nargs="+", help="bias scorers that are judged; by default all. Ranks are compared for all")
    parser.add_argument("--without", nargs="*", default=[], help="bias scorers that are left out, and named in the record")
    parser.add_argument("--controls", action="store_true")
    parser.add_argument("--importance", action="store_true")
    parser.add_argument("--documents", type=int, default=32, help="of the calibration text that costs are measured on")
    parser.add_argument("--work", default="runs/leaderboard")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--record", help="the .md file to write; by default it is printed")
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    bind(Path(words.work), {name: getattr(words, name) for name in ("model", "prompts", "budget", "documents", "controls")})
    bench = Bench(words.model, words.prompts, words.budget, Path(words.work), words.documents, words.controls)
    wanted = [entry.name for entry in discovery.entries("bias") if entry.name not in words.without]
    names = [("bias", name) for name in wanted if not words.only or name in words.only]
    names += [("importance", entry.name) for entry in discovery.entries("importance")] if words.importance else []
    scored = [bench.scores(half, names) for half in (0, 1)]
    evaluators = [bench.evaluator(half) for half in (0, 1)]

    def measured(name: str, half: int, units: Units, *, contrasts: bool = True) -> dict[str, Any]:
        def measure() -> dict[str, Any]:
            began = time.perf_counter()
            if contrasts:
                found = evaluators[half].measure(units)
                values, cost = dict(found.values), evaluators[half].cost(found)
            else:
                bare = MaskedEvaluator(bench.run.loaded.model, bench.run.loaded.architecture, (), {}, documents=bench.documents)
                values, cost = {}, bare.cost(bare.measure(units))
            say(f"{name}, judged by half {half}: {time.perf_counter() - began:.0f} s")
            return {"values": values, "cost": cost}

        return cast(dict[str, Any], bench.kept.get(f"{name}/{half}", measure))

    before = [measured("original", half, {})["values"] for half in (0, 1)]
    rows: dict[str, tuple[PairedChange, PairedChange | None, float, list[dict[str, list[int]]]]] = {}
    sets = {f"random {seed}": [bench.drawn(seed, words.budget)] * 2 for seed in range(words.random)}
    sets |= {
        name: [bench.highest(half[f"bias {name}"], words.budget) for half in scored]
        for kind, name in names
        if kind == "bias" and all(f"bias {name}" in half for half in scored) and name in (words.judge or [name])
    }
    for name, chosen in sets.items():
        found = [measured(name, half, chosen[1 - half]) for half in (0, 1)]
        after = [one["values"] for one in found]
        controls = changes(bench, before, after, "control") if words.controls else None
        rows[name] = (changes(bench, before, after, "demographic"), controls, sum(one["cost"] for one in found) / 2, chosen)
    costs = {
        name: sum(
            measured(
                f"least {name}",
                half,
                bench.highest({s: -v for s, v in scored[half][f"importance {name}"].items()}, words.least),
                contrasts=False,
            )["cost"]
            for half in (0, 1)
        )
        / 2
        for kind, name in names
        if kind == "importance"
    }
    text = record(bench, words, rows, costs, scored)
    give(text, words.record)
    return 0


def record(bench: Bench, words: Any, rows: Any, costs: Mapping[str, float], scored: Any) -> str:
    own = {name: row for name, row in rows.items() if not name.startswith("random ")}
    chance = [row for name, row in rows.items() if name.startswith("random ")]
    order = sorted(own, key=lambda name: own[name][0].change or 0.0)
    total = sum(site.units for site in bench.sites.values())

    def same(chosen: Sequence[Mapping[str, Sequence[int]]]) -> float:
        one, other = ({(site, unit) for site, units in half.items() for unit in units} for half in chosen)
        return len(one & other) / max(len(one), 1)

    counted = {role: sum(len(bench.side(half, role)) for half in (0, 1)) for role in ("demographic", "control")}
    options = "; ".join(f"`{name}` with {FEWER[name]}" for name in order if name in FEWER)
    left_out = ", ".join(f"`{name}`" for name in words.without)
    tokens = sum(map(len, bench.documents))
    lines = [
        f"# Leaderboard of bias scorers: {words.model}, {words.prompts}, {words.budget} of {total:,} neurons",
        "",
        f"`benchmarks/leaderboard.py`, on {machine()}; the machine was shared.",
        "",
        f"{counted['demographic']} contrasts of the split `select`, in two halves by template; held-out contrasts take no part. Each",
        "scorer scores one half with its defaults"
        + (f" ({options})" if options else "")
        + ", its highest neurons over all layers are",
        "masked, and the other half judges, in both directions. Changes of `next-token-divergence`, with 95 % intervals (paired",
        f"bootstrap over templates). Perplexity: on {tokens:,} tokens of the scoring half of the calibration text. Same: the share of",
        "neurons that both halves chose." + (f" Left out, since they take too long here: {left_out}." if left_out else ""),
        "",
        "| scorer | divergence | of controls | perplexity | same |",
        "|---|---|---|---|---|",
    ]
    for name in order:
        change, controls, cost, chosen = own[name]
        lines.append(f"| `{name}` | {shown(change)} | {shown(controls)} | {cost:+.2%} | {same(chosen):.0%} |")
    if chance:
        values, prices = [row[0].change or 0.0 for row in chance], [row[2] for row in chance]
        lines.append(
            f"| {len(chance)} random sets: median (range) | {np.median(values):+.1%} ({min(values):+.1%} to {max(values):+.1%}) | | "
            f"{np.median(prices):+.2%} ({min(prices):+.2%} to {max(prices):+.2%}) | |"
        )
        best = [name for name in order if (own[name][0].change or 0.0) < min(values)]
        sure = [name for name in order if own[name][0].ci_high is not None and own[name][0].ci_high < 0]
        lines += [
            "",
            f"{len(best)} of {len(order)} scorers lower the divergence by more than every random set. The interval lies below 0 for",
            f"{len(sure)}: {', '.join(f'`{name}`' for name in sure) or 'none'}.",
        ]
    order += sorted(name.removeprefix("bias ") for name in scored[0] if name.startswith("bias ") and name[5:] not in own)
    table = correlations({name: [s[f"bias {name}"] for s in scored] for name in order})
    near = sorted(((table[a][b], a, b) for i, a in enumerate(order) for b in order[:i]), reverse=True)
    lines += [
        "",
        "## Which scorers find the same neurons",
        "",
        "Spearman's rank correlation over all neurons, mean of both halves, times 100; those judged first, by rank.",
        "",
        "| | " + " | ".join(str(i + 1) for i in range(len(order))) + " |",
        "|---" * (len(order) + 1) + "|",
        *(
            f"| {i + 1} `{name}` | "
            + " | ".join("" if name == other else f"{100 * table[name][other]:.0f}" for other in order)
            + " |"
            for i, name in enumerate(order)
        ),
        "",
        "Nearest: "
        + "; ".join(f"`{a}` and `{b}` {value:.2f}" for value, a, b in near[:5])
        + ". Farthest: "
        + "; ".join(f"`{a}` and `{b}` {value:.2f}" for value, a, b in near[::-1][:3])
        + ".",
        "",
    ]
    if costs:
        lines += [
            f"## Importance scorers: the {words.least:,} neurons of the lowest score masked",
            "",
            "| scorer | perplexity |",
            "|---|---|",
            *(f"| `{name}` | {cost:+.1%} |" for name, cost in sorted(costs.items(), key=lambda pair: pair[1])),
            "",
            "The text is the one that activations and gradients were summed over: the scoring half of the calibration text.",
            "",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
