"""The summary of a run in the terminal: verdict first, then its numbers, at most 80 columns wide."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairprune_framework.api.types import Plan
from fairprune_framework.evaluation.metrics.names import LANGUAGE_METRICS
from fairprune_framework.evaluation.results import Evaluation
from fairprune_framework.evaluation.rows import ResultRow
from fairprune_framework.models.loading import public_name
from fairprune_framework.recipes.recipe import Recipe
from fairprune_framework.reporting.charts.chart import basis
from fairprune_framework.surgery.speed import speed_in_words
from fairprune_framework.utilities.files import in_mb
from fairprune_framework.utilities.wording import number_of

WIDTH = 80


def summary(folder: Path, recipe: Recipe, record: Mapping[str, Any], plan: Plan | None, evaluation: Evaluation | None) -> str:
    """The text to print: the content of a run folder, and the next missing stage.

    Args:
        record: the content of `run.json`.
        plan: of a finished stage `plan`.
        evaluation: of a finished stage `evaluate`.
    """
    lines: list[str] = []
    stages = record["stages"]
    if "verdict" in record and "evaluate" in stages:
        lines += _wrapped(f"VERDICT  {record['verdict']}: {record['verdict_because']}")
    elif record.get("abstained"):
        lines += _wrapped(f"ABSTAINED  {record['abstained_because']}")
    facts = [("model", public_name(recipe.model) if recipe.model else "in memory")]
    if recipe.prompts or "contrasts" in record:
        facts.append(("prompts", _prompts(recipe, record)))
    if plan is not None:
        share = plan.achieved.get("fraction") or 0
        facts.append(
            (
                "plan",
                f"{number_of(plan.count, 'neuron')} ({share:.2%}), asked for {plan.requested.get('budget')}, {_operator(plan)}",
            )
        )
    if "guard" in record:
        guard = record["guard"]
        word = "held" if guard["held"] else "failed"
        increase = "beyond all numbers" if guard["increase"] is None else f"{guard['increase']:+.2%}"
        facts.append(("guard", f"{word}: perplexity {increase}, at most {guard['limit']:+.1%}"))
    elif "removal" in record and record["removal"]["max_difference"] is None:
        facts.append(("guard", "did not measure: shard by shard no forward is computed"))
    if "removal" in record:
        removal = record["removal"]
        note = f"; {removal['note']}" if removal["note"] else ""
        before, after = removal["parameters_before"], removal["parameters_after"]
        size = f"{in_mb(removal['bytes_before'])} -> {in_mb(removal['bytes_after'])}"
        verified = "reload verified" if removal["max_difference"] is not None else "files verified"
        facts.append(("model/", f"{before:,} -> {after:,} parameters, {size} of weights, {verified}{note}"))
    if (speed := record.get("speed")) is not None:
        facts.append(("speed", speed_in_words(speed)))
    for name, text in facts:
        lines += _wrapped(f"{name:<8} {text}", indent=9)
    if evaluation is not None:
        lines += ["", *_table(evaluation)]
    order = ("audit", "score", "plan", "prune", "evaluate")
    missing = order[max((index + 1 for index, stage in enumerate(order) if stage in stages), default=0) :]
    if missing and not ("evaluate" in stages and "plan" not in stages):
        lines += ["", f"next: fairprune {missing[0]} --output {folder}"]
    seconds = record.get("seconds", {})
    if seconds:
        lines += ["", *_wrapped("seconds  " + "  ".join(f"{name} {value:.1f}" for name, value in seconds.items()), indent=9)]
    if "report" in stages:
        lines.append(f"look at  {folder / 'report.html'}")
    lines.append(f"folder   {folder}")
    return "\n".join(lines)


def _operator(plan: Plan) -> str:
    return plan.operator if plan.factor is None else f"{plan.operator} x {plan.factor:g}"


def _prompts(recipe: Recipe, record: Mapping[str, Any]) -> str:
    counts = record.get("contrasts", {})
    text = str(recipe.prompts or "in memory")
    if counts:
        text += f", {number_of(counts['used'], 'contrast')}"
        if counts["skipped"]:
            text += f" ({counts['skipped']} skipped: skipped.jsonl)"
    if record.get("n_unequal"):
        text += f", {record['n_unequal']} of unequal token counts"
    return text


def _table(evaluation: Evaluation) -> list[str]:
    rows: list[tuple[str, ResultRow]] = []
    for row in evaluation.rows:
        if row.layer is None and row.category is None:
            where = "judging text" if row.metric in LANGUAGE_METRICS else (row.split or "all prompts")
            rows.append((f"{row.metric}, {'control ' if row.control else ''}{where}", row))
    lines = [f"{'':42}{'before':>9} {'after':>9}  change [95 %]"]
    for name, row in rows:
        lines.append(f"{name:<42}{_number(row.before):>9} {_number(row.after):>9}  {_change(row)}".rstrip())
        if of := basis(row.to_json()):
            lines.append(f"{of:>{WIDTH}}")
        if (least := _least(row)) is not None:
            lines.append(f"{'':63}would show from {least:.0%}")
    return lines


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _least(row: ResultRow) -> float | None:
    """The relative change detectable with 80 % power, for a row without a significant one."""
    distance = abs(row.before - row.ideal) if row.before is not None else 0.0
    if (
        row.detectable is None
        or row.ci_low is None
        or row.ci_high is None
        or not row.ci_low <= 0 <= row.ci_high
        or not distance
    ):
        return None
    return row.detectable / distance


def _change(row: ResultRow) -> str:
    if row.change is None:
        return ""
    if row.ci_low is None or row.ci_high is None:
        return f"{row.change:+.1%}"
    return f"{row.change:+.1%} [{100 * row.ci_low:+.0f}, {100 * row.ci_high:+.0f}]"


def _wrapped(text: str, indent: int = 9, **rest: Any) -> list[str]:
    import textwrap

    return textwrap.wrap(text, WIDTH, subsequent_indent=" " * indent, break_long_words=False, **rest)
