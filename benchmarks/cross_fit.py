"""CrowS-Pairs by cross-fitting: every pair is judged by neurons that it had no part in choosing, over fresh random halves.

    python benchmarks/cross_fit.py --splits 5 --record benchmarks/cross_fit_smollm2-135m_202611.md

One audit of all pairs keeps the sums of hashed clusters of them apart. Each split draws half of the clusters of every category; each
half chooses by the recipe `default` without `recall`, with the objective `--objective`, and the other half judges. How many neurons is
settled without judging: the most of `--neurons` that cost at most `--cost` in perplexity on text that judges nothing. Every measurement
is a cell in the work folder, so that a call goes on where the last one stopped.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import DATA, give, machine
from evidence import WINDOW, first_tokens, text_row
from evidence_arms import TOWARDS
from evidence_record import significantly_worse

from fairprune_framework.api import Choice, Needs, SelectionPolicy
from fairprune_framework.api.types import Plan
from fairprune_framework.auditing.replicates import weighted
from fairprune_framework.auditing.sums import CLUSTERS, cluster_of
from fairprune_framework.contrasts.check import contrasts_of
from fairprune_framework.errors import UserError
from fairprune_framework.evaluation.cache import MeasurementCache
from fairprune_framework.evaluation.metrics.names import STEREOTYPE_PREFERENCE
from fairprune_framework.evaluation.rows import ResultRow
from fairprune_framework.evaluation.sentence_rows import sentence_items, sentence_rows
from fairprune_framework.evaluation.subject import Subject
from fairprune_framework.pipeline import run_stages
from fairprune_framework.recipes.loading import with_options
from fairprune_framework.runs.open import open_run
from fairprune_framework.selection.decide import plan_of, rescored, scores_of


@dataclass(frozen=True, kw_only=True)
class KeepClusters(SelectionPolicy):
    """Chooses nothing; that it declares replicates lets the audit keep the sums of clusters apart."""

    def needs(self) -> Needs:
        return Needs(replicates=1)

    def select(self, scores: Any, budget: Any, context: Any) -> Choice:
        return Choice(units={}, reason="chooses nothing")


@dataclass(frozen=True, kw_only=True)
class Half:
    """What one half of one split chose, and how the other half found it."""

    neurons: int
    text: ResultRow
    items: list[dict[str, Any]]


class Split:
    """Both halves of a split, and its rows: every pair once, judged by what the other half chose."""

    def __init__(self, halves_of: Sequence[Half]) -> None:
        self.halves = halves_of
        items = sorted((item for half in halves_of for item in half.items), key=lambda item: str(item["id"]))
        rows = [row for row in sentence_rows(items, 0) if row.metric == STEREOTYPE_PREFERENCE]
        self.row = next(row for row in rows if row.category is None)
        self.worse = [row.category or "" for row in significantly_worse(rows)]


def halves(counts: Sequence[Sequence[int]], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (G, B) of two halves: of every category's clusters that hold contrasts, a random half each."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.zeros((len(counts), len(counts[0])), dtype=torch.float64)
    filled = torch.tensor(counts) > 0
    for group, places in enumerate(filled):
        found = places.nonzero().flatten()
        first[group, found[torch.randperm(len(found), generator=generator)[: len(found) // 2]]] = 1
    return first, filled.double() - first


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", default=str(DATA), help="folder of public data, as benchmarks/README.md explains")
    parser.add_argument("--work", default="runs/cross_fit", help="audit and cached measurements; a later call goes on from it")
    parser.add_argument("--objective", default="preference", choices=sorted(TOWARDS))
    parser.add_argument("--first", type=int, default=0, help="number (and seed) of the first split")
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--neurons", type=int, nargs="+", default=[92, 75, 60, 50, 40, 30, 20])
    parser.add_argument("--cost", type=float, default=0.015, help="perplexity, relative, on text that judges nothing")
    parser.add_argument(
        "--tokens", type=int, default=8192, help="of WikiText-2 validation that settle, and of its test that judge"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--record", help="the .md file to write; by default it is printed")
    words = parser.parse_args()
    torch.set_num_threads(words.threads)

    def say(text: str) -> None:
        print(f"[cross_fit] {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)

    data, work = Path(words.data), Path(words.work)
    found, _, prompts_hash = contrasts_of(str(data / "crows_pairs" / "crows_pairs_anonymized.csv"), bad="skip")
    options = {**TOWARDS[words.objective], "budget": f"{max(words.neurons)}n"}
    run = open_run(work / "run", options, recipe="default", model=words.model, prompts=found, notify=say)
    run.plugins.also = (KeepClusters(),)
    run_stages(run, "read", "audit")
    scores, statistics = scores_of(run.selection), run.read_statistics()
    groups = {category: place for place, category in enumerate(statistics.categories)}
    settling = run.loaded.encoder.ids((data / "wikitext2" / "valid_raw.txt").read_text(encoding="utf-8"))[: words.tokens]
    judging = first_tokens(data / "wikitext2" / "test_docs.jsonl", run.loaded.encoder, words.tokens)
    subject = Subject(
        run.loaded.model,
        run.loaded.tokenizer,
        run.loaded.architecture,
        MeasurementCache(work / "cache", say),
        encoder=run.loaded.encoder,
        notify=say,
    )
    base = subject.text("settling", settling, WINDOW), subject.text("judging", judging, WINDOW)
    before = {one.id: one for one in subject.sentences("crows", run.prompts.aligned)}

    def chosen_by(split: int, name: str, choosing_GB: torch.Tensor) -> Plan:
        chosen = rescored(run.selection, scores, weighted(statistics, choosing_GB))
        for neurons in sorted(words.neurons, reverse=True):
            plan = plan_of(run.with_recipe(with_options(run.recipe, {"budget": f"{neurons}n"})).selection, chosen)
            cost = text_row(base[0], subject.masked_by(plan.sites, plan.scaling).text("settling", settling, WINDOW)).change
            assert cost is not None  # a perplexity is never its ideal, 0
            say(f"split {split}, half {name}: {neurons} neurons cost {cost:+.2%} on the text that settles")
            if cost <= words.cost:
                return plan
        raise UserError(f"split {split}, half {name}: no number of --neurons costs at most --cost {words.cost}")

    def half(split: int, name: str, choosing_GB: torch.Tensor) -> Half:
        plan = chosen_by(split, name, choosing_GB)
        arm = subject.masked_by(plan.sites, plan.scaling)
        others = [
            one
            for one in run.prompts.aligned
            if not choosing_GB[groups[one.category], cluster_of(one.category, one.template_id)]
        ]
        items = sentence_items(found, [before[one.id] for one in others], arm.sentences("crows", others))
        return Half(neurons=plan.count, text=text_row(base[1], arm.text("judging", judging, WINDOW)), items=items)

    done: dict[int, Split] = {}
    for split in range(words.first, words.first + words.splits):
        both = halves(statistics.cluster_counts, split)
        done[split] = Split([half(split, name, choosing_GB) for name, choosing_GB in zip("AB", both, strict=True)])
        row = done[split].row
        say(f"split {split}: share {row.before:.2%} to {row.after:.2%}, p {row.p_value:.2g}")
    facts = {
        "model": f"{words.model} ({run.fingerprint[:12]}), float32, masked",
        "machine": machine(),
        "pairs": f"CrowS-Pairs, {len(before):,} pairs, sha256 {prompts_hash[:12]}, in {CLUSTERS} hashed clusters a category",
        "choosing": f"recipe default without recall, {words.objective}; of {', '.join(map(str, words.neurons))} neurons the most that "
        f"cost at most {words.cost:.1%} on the first {words.tokens:,} tokens of WikiText-2 validation",
        "judging": f"the other half; the first {words.tokens:,} tokens of WikiText-2 test; first token of a sentence not counted",
    }
    text = render(done, facts)
    give(text, words.record)
    return 0


# -- the record ------------------------------------------------------------------------------------------------------------


def render(done: Mapping[int, Split], facts: Mapping[str, str]) -> str:
    lines = ["# CrowS-Pairs, cross-fitted", "", *(f"- {name}: {text}" for name, text in facts.items()), ""]
    lines += [
        "Each line: every pair once, judged by the neurons that the half without it chose. Distance: of the share of pairs whose",
        "stereotyping sentence is likelier from 50 %, its relative change with its 95 % interval over pairs. Flips: pairs that went from",
        "stereotyping to not / the other way; McNemar's exact p. The splits share all pairs: they are no independent tests, and say how",
        "much the choice of halves matters.",
        "",
        "| split | neurons | share | distance | flips | McNemar | perplexity, both halves | categories worse, Holm p < 0.05 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for number, split in done.items():
        row = split.row
        interval = "" if row.ci_low is None else f" [{row.ci_low:+.0%}, {row.ci_high:+.0%}]"
        change = "" if row.change is None else f"{row.change:+.1%}{interval}"
        costs = ", ".join(f"{half.text.change:+.2%}" for half in split.halves if half.text.change is not None)
        lines.append(
            f"| {number} | {', '.join(str(half.neurons) for half in split.halves)} | {row.before:.2%} to {row.after:.2%} | {change} "
            f"| {row.only_before} / {row.only_after} | {row.p_value:.2g} | {costs} | {', '.join(split.worse) or 'none'} |"
        )
    rows = [split.row for split in done.values()]
    changes = [row.change for row in rows if row.change is not None]
    spent = [half.text.change for split in done.values() for half in split.halves if half.text.change is not None]
    worst = max(row.p_value for row in rows if row.p_value is not None)
    lines += [
        "",
        f"Over {len(rows)} splits: distance {median(changes):+.1%} (median; {min(changes):+.1%} to {max(changes):+.1%}), largest p "
        f"{worst:.2g}, perplexity {sum(spent) / len(spent):+.2%} on average, {max(spent):+.2%} at most over {len(spent)} halves.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"cross_fit: {error}")
