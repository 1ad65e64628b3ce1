"""CrowS-Pairs by cross-fitting: every pair is judged by neurons that it had no part in choosing, over fresh random halves.

    python benchmarks/cross_fit.py --splits 5 --record benchmarks/cross_fit_smollm2-135m_202611.md
    python benchmarks/cross_fit.py --arm gates --objective shared-preference --splits 10 --cost 0.01 \
        --record benchmarks/cross_fit_gates_smollm2-135m_202611.md

One audit of all pairs keeps the sums of hashed clusters of them apart. Each split draws half of the clusters of every category; each
half chooses, with the objective `--objective`, and the other half judges. The arm `removal` is the recipe `default` without `recall`,
`gates` the recipe `gates` without what needs controls and legitimate contrasts. How much each may do is settled without judging: the
most neurons, or the largest `cost`, of `--ladder` that cost at most `--cost` in perplexity on text that judges nothing. Every
measurement is a cell in the work folder, so that a call goes on where the last one stopped.

All splits together are one test: of each pair, the mean over the splits of what it preferred after, against what it preferred before;
resampled over templates. The pairs are counted once, however many splits there are.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from common import DATA, give, machine
from evidence import WINDOW, first_tokens, text_row
from evidence_arms import TOWARDS
from evidence_record import significantly_worse

from fairprune_framework.api import Choice, Needs, SelectionPolicy
from fairprune_framework.api.types import Plan
from fairprune_framework.auditing.replicates import weighted
from fairprune_framework.auditing.statistics import CLUSTERS, cluster_of
from fairprune_framework.contrasts.alignment import AlignedContrast
from fairprune_framework.contrasts.check import contrasts_of
from fairprune_framework.errors import UserError
from fairprune_framework.evaluation.cache import MeasurementCache
from fairprune_framework.evaluation.compare import sentences_of
from fairprune_framework.evaluation.metrics.names import SHARED_PREFERENCE, STEREOTYPE_PREFERENCE
from fairprune_framework.evaluation.metrics.sentences import SentenceMeasure
from fairprune_framework.evaluation.rows import ResultRow
from fairprune_framework.evaluation.sentence_rows import sentence_items, sentence_rows
from fairprune_framework.evaluation.subject import Subject
from fairprune_framework.functional.bootstrap import Interval, StatisticChange, change_of
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
    step: str
    """Of the ladder."""
    text: ResultRow
    items: list[dict[str, Any]]


class Split:
    """Both halves of a split, and its rows: every pair once, judged by what the other half chose."""

    def __init__(self, halves_of: Sequence[Half], metric: str) -> None:
        self.halves = halves_of
        self.items = sorted((item for half in halves_of for item in half.items), key=lambda item: str(item["id"]))
        rows = [row for row in sentence_rows(self.items, 0) if row.metric == metric]
        self.row = next(row for row in rows if row.category is None)
        self.worse = [row.category or "" for row in significantly_worse(rows)]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A recipe, and what is varied of it until it costs little enough."""

    recipe: str
    told: str
    unit: str
    option: str
    """What the ladder sets."""
    ladder: tuple[str, ...]

    def step(self, value: str) -> dict[str, Any]:
        """Options of one step."""
        return {self.option: f"{value}n" if self.option == "budget" else float(value)}

    def options(self, objective: str) -> dict[str, Any]:
        """Of the audit and of the first step."""
        if self.recipe == "default":
            return {**TOWARDS[objective], **self.step(self.ladder[0])}
        policy: dict[str, Any] = {
            "plugin": "gates",
            "specific": False,
            "legitimate": False,
            "spare": 0.5,
            "cost": float(self.ladder[0]),
        }
        return {"bias": TOWARDS[objective]["bias"], "policy": policy}


ARMS = {
    "removal": Arm(
        recipe="default",
        told="recipe default without recall",
        unit="neurons",
        option="budget",
        ladder=("92", "75", "60", "50", "40", "30", "20"),
    ),
    "gates": Arm(
        recipe="gates",
        told="recipe gates without controls and legitimate contrasts",
        unit="costs",
        option="policy.cost",
        ladder=("0.0008", "0.0004", "0.0002"),
    ),
}
SCORED = {
    STEREOTYPE_PREFERENCE: "whole sentences, the first token not counted",
    SHARED_PREFERENCE: "the tokens that both sentences share behind the first difference (Nangia et al. 2020)",
}


def halves(counts: Sequence[Sequence[int]], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (G, B) of two halves: of every category's clusters that hold contrasts, a random half each."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.zeros((len(counts), len(counts[0])), dtype=torch.float64)
    filled = torch.tensor(counts) > 0
    for group, places in enumerate(filled):
        found = places.nonzero().flatten()
        first[group, found[torch.randperm(len(found), generator=generator)[: len(found) // 2]]] = 1
    return first, filled.double() - first


def unsure(preferences: Iterable[tuple[str, bool | None]], errors: float) -> list[str]:
    """Categories whose share of stereotyping preferences is not above 50 % by so many standard errors; pairs without one do not count."""
    of: dict[str, list[float]] = defaultdict(list)
    for category, preferred in preferences:
        if preferred is not None:
            of[category].append(float(preferred))
    return sorted(name for name, each in of.items() if fmean(each) - 0.5 <= errors * 0.5 / len(each) ** 0.5)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", default=str(DATA), help="folder of public data, as benchmarks/README.md explains")
    parser.add_argument("--work", default="runs/cross_fit", help="audit and cached measurements; a later call goes on from it")
    parser.add_argument("--objective", default="preference", choices=sorted(TOWARDS))
    parser.add_argument("--first", type=int, default=0, help="number (and seed) of the first split")
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--arm", default="removal", choices=sorted(ARMS))
    parser.add_argument("--ladder", nargs="+", help="neurons of `removal`, costs of `gates`, the most first")
    parser.add_argument("--cost", type=float, default=0.015, help="perplexity, relative, on text that judges nothing")
    parser.add_argument(
        "--tokens", type=int, default=8192, help="of WikiText-2 validation that settle, and of its test that judge"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--record", help="the .md file to write; by default it is printed")
    parser.add_argument(
        "--leave-unless-above",
        type=float,
        metavar="ERRORS",
        help="arm gates: leave a category alone whose share in the choosing half is not above 50 %% by so many standard errors",
    )
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    if words.leave_unless_above is not None and words.arm != "gates":
        parser.error("--leave-unless-above is an option of the arm gates")

    def say(text: str) -> None:
        print(f"[cross_fit] {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)

    data, work = Path(words.data), Path(words.work)
    found, _, prompts_hash = contrasts_of(str(data / "crows_pairs" / "crows_pairs_anonymized.csv"), bad="skip")
    arm = ARMS[words.arm]
    ladder = [arm.step(value) for value in words.ladder or arm.ladder]
    metric = SHARED_PREFERENCE if words.objective.startswith("shared") else STEREOTYPE_PREFERENCE
    run = open_run(work / "run", arm.options(words.objective), recipe=arm.recipe, model=words.model, prompts=found, notify=say)
    run.plugins.also = (KeepClusters(),)
    run_stages(run, "read", "audit")
    run.loaded.to_device()
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

    def sentences(of: Subject, pairs: Sequence[AlignedContrast]) -> list[SentenceMeasure]:
        """By all tokens and by those that a pair shares, from one forward."""
        return sentences_of(of.contrasts("crows", pairs, run.prompts.values, frozenset()), pairs)

    before = {one.id: one for one in sentences(subject, run.prompts.aligned)}

    def side(choosing_GB: torch.Tensor, chosen: bool) -> list[AlignedContrast]:
        """The pairs of the half that chooses, or of the other."""
        weights = (
            (one, choosing_GB[groups[one.category], cluster_of(one.category, one.template_id)]) for one in run.prompts.aligned
        )
        return [one for one, weight in weights if bool(weight) == chosen]

    def left_alone(choosing_GB: torch.Tensor) -> dict[str, Any]:
        """The categories that show the half which chooses no stereotype to lower."""
        if words.leave_unless_above is None:
            return {}
        measured = [before[one.id] for one in side(choosing_GB, True)]
        items = sentence_items(found, measured, measured)
        return {
            "policy.leave": unsure([(item["category"], item[f"{metric}_before"]) for item in items], words.leave_unless_above)
        }

    def chosen_by(split: int, name: str, choosing_GB: torch.Tensor) -> tuple[Plan, str]:
        chosen = rescored(run.selection, scores, weighted(statistics, choosing_GB))
        fixed = left_alone(choosing_GB)
        if fixed:
            say(f"split {split}, half {name}: left alone {', '.join(fixed['policy.leave']) or 'none'}")
        for step in ladder:
            plan = plan_of(run.with_recipe(with_options(run.recipe, step | fixed)).selection, chosen)
            cost = text_row(base[0], subject.masked_by(plan.sites, plan.scaling).text("settling", settling, WINDOW)).change
            assert cost is not None  # a perplexity is never its ideal, 0
            said = ", ".join(f"{option} {value}" for option, value in step.items())
            say(f"split {split}, half {name}: {said} costs {cost:+.2%} on the text that settles")
            if cost <= words.cost:
                return plan, said
        raise UserError(f"split {split}, half {name}: nothing of --ladder costs at most --cost {words.cost}")

    def half(split: int, name: str, choosing_GB: torch.Tensor) -> Half:
        plan, said = chosen_by(split, name, choosing_GB)
        edited = subject.masked_by(plan.sites, plan.scaling)
        others = side(choosing_GB, False)
        items = sentence_items(found, [before[one.id] for one in others], sentences(edited, others))
        return Half(neurons=plan.count, step=said, text=text_row(base[1], edited.text("judging", judging, WINDOW)), items=items)

    done: dict[int, Split] = {}
    for split in range(words.first, words.first + words.splits):
        both = halves(statistics.cluster_counts, split)
        done[split] = Split([half(split, name, choosing_GB) for name, choosing_GB in zip("AB", both, strict=True)], metric)
        row = done[split].row
        say(f"split {split}: share {row.before:.2%} to {row.after:.2%}, p {row.p_value:.2g}")
    left = ""
    if words.leave_unless_above is not None:
        left = f", each category left alone whose share in the choosing half is not {words.leave_unless_above:g} standard errors above 50 %"
    facts = {
        "model": f"{words.model} ({run.fingerprint[:12]}), float32, masked",
        "machine": machine(),
        "pairs": f"CrowS-Pairs, {len(before):,} pairs, sha256 {prompts_hash[:12]}, in {CLUSTERS} hashed clusters a category",
        "choosing": f"{arm.told}{left}, objective {words.objective}; of {arm.unit} {', '.join(words.ladder or arm.ladder)} the most that "
        f"costs at most {words.cost:.1%} on the first {words.tokens:,} tokens of WikiText-2 validation",
        "judging": f"the other half; the first {words.tokens:,} tokens of WikiText-2 test; {SCORED[metric]}",
    }
    text = render(done, facts, metric)
    give(text, words.record)
    return 0


# -- the record ------------------------------------------------------------------------------------------------------------


def together(splits: Iterable[Split], metric: str, category: str | None = None) -> StatisticChange:
    """Share of pairs that prefer the stereotype, after: of each pair the mean over the splits."""
    after: dict[str, list[float]] = defaultdict(list)
    before, clusters = {}, {}
    for split in splits:
        for item in split.items:
            if item[f"{metric}_before"] is None or category not in (None, item["category"]):
                continue
            before[item["id"]] = float(item[f"{metric}_before"])
            clusters[item["id"]] = f"{item['category']}/{item['template_id']}"
            after[item["id"]].append(float(item[f"{metric}_after"]))
    return change_of(
        [[value, 1] for value in before.values()],
        [[fmean(after[name]), 1] for name in before],
        [clusters[name] for name in before],
        ideal=0.5,
    )


def ends(found: Interval | None, places: int, unit: str) -> str:
    """A value and its interval, in hundredths."""
    if found is None:
        return ""
    interval = (
        "" if found.low is None or found.high is None else f" [{100 * found.low:+.{places}f}, {100 * found.high:+.{places}f}]"
    )
    return f"{100 * found.value:+.{places}f}{unit}{interval}"


def all_together(splits: Sequence[Split], metric: str) -> list[str]:
    """The test of all splits, and each category's change."""
    lines = [
        "",
        "## All splits together",
        "",
        "Of each pair the mean over the splits of whether its stereotyping sentence is likelier after; one test over pairs, resampled by",
        "template.",
        "",
        "| | pairs | share before | after | distance from 50 % | share, points [95 %] | p |",
        "|---|---|---|---|---|---|---|",
    ]
    rows = {"all": together(splits, metric)}
    for category in sorted({item["category"] for item in splits[0].items}):
        rows[category] = together(splits, metric, category)
    for name, found in rows.items():
        points = found.difference
        p = "" if points.p_value is None else f"{points.p_value:.2g}"
        lines.append(
            f"| {name} | {found.n} | {found.before:.2%} | {found.after:.2%} | {ends(found.change, 1, '%')} | {ends(points, 2, '')} | {p} |"
        )
    return lines


def render(done: Mapping[int, Split], facts: Mapping[str, str], metric: str) -> str:
    lines = ["# CrowS-Pairs, cross-fitted", "", *(f"- {name}: {text}" for name, text in facts.items()), ""]
    lines += [
        "Each line: every pair once, judged by the neurons that the half without it chose. Distance: of the share of pairs whose",
        "stereotyping sentence is likelier from 50 %, its relative change with its 95 % interval over pairs. Flips: pairs that went from",
        "stereotyping to not / the other way; McNemar's exact p. The splits share all pairs: they are no independent tests, and say how",
        "much the choice of halves matters.",
        "",
        "| split | neurons, step | share | distance | flips | McNemar | perplexity, both halves | categories worse, Holm p < 0.05 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for number, split in done.items():
        row = split.row
        interval = "" if row.ci_low is None else f" [{row.ci_low:+.0%}, {row.ci_high:+.0%}]"
        change = "" if row.change is None else f"{row.change:+.1%}{interval}"
        costs = ", ".join(f"{half.text.change:+.2%}" for half in split.halves if half.text.change is not None)
        chosen = ", ".join(f"{half.neurons:,} ({half.step})" for half in split.halves)
        lines.append(
            f"| {number} | {chosen} | {row.before:.2%} to {row.after:.2%} | {change} "
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
        *all_together(list(done.values()), metric),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"cross_fit: {error}")
