"""The record as Markdown: one table a question, the goals with met or not met, and what the data allow to conclude.

Every word about an effect is computed from the numbers here; nothing is written by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from fairprune_framework.api.types import Plan
from fairprune_framework.evaluation.rows import ResultRow
from fairprune_framework.functional.hypothesis_tests import holm

Rows = Mapping[str, Sequence[ResultRow]]


def render(
    rows: Rows,
    plans: Mapping[str, Plan],
    *,
    arms: Mapping[str, str],
    notes: Mapping[str, str],
    ours: str | None,
    crows_arm: str | None,
    transfer_arm: str | None,
    controls: Sequence[str],
    facts: Mapping[str, str],
) -> str:
    """The whole record."""
    lines = [f"# Evidence: {facts['model'].partition(' ')[0]}", ""]
    lines += [f"- {name}: {text}" for name, text in facts.items() if text]
    lines += [
        "",
        "Every interval is of 95 %, paired, over templates, questions, windows or pairs (column `clusters`). `change` is relative to",
        "the distance from the ideal: of a divergence, a gap, a score or a perplexity from 0, of a stereotype share from 50 %, of an",
        "accuracy from 1. `p` is McNemar's exact test where items answer yes or no, else that of the interval; Holm's `p` is over the",
        "categories of the same metric. `seen` is the difference that would have been seen with 80 % power.",
        "",
        "## Arms",
        "",
        "| arm | what | neurons | layers | chosen by |",
        "|---|---|---|---|---|",
    ]
    for name, plan in plans.items():
        layers = sum(1 for units in plan.sites.values() if units)
        what = arms[name].rpartition("/")[2]
        lines.append(f"| {name} | {what} | {plan.count} | {layers} | {notes.get(name, '')} |")
    for title, wanted in _TABLES:
        table = _table(rows, wanted)
        if table:
            lines += ["", f"## {title}", "", *table]
    lines += ["", *goals(rows, ours, crows_arm, transfer_arm, controls)]
    return "\n".join(lines) + "\n"


def _metric(
    name: str, *, split: str | None = None, control: bool = False, categories: bool = False
) -> Callable[[ResultRow], bool]:
    def wanted(row: ResultRow) -> bool:
        return (
            row.metric == name
            and row.layer is None
            and row.control == control
            and (split is None or row.split == split)
            and (row.category is not None) == categories
        )

    return wanted


_TABLES: tuple[tuple[str, Callable[[ResultRow], bool]], ...] = (
    ("Next-token divergence, held out", _metric("next-token-divergence", split="heldout")),
    ("Next-token divergence, select", _metric("next-token-divergence", split="select")),
    ("Next-token divergence, controls held out", _metric("next-token-divergence", split="heldout", control=True)),
    ("Activation difference, held out", _metric("activation-difference", split="heldout")),
    ("Sequence gap, held out", _metric("sequence-gap", split="heldout")),
    ("Perplexity, WikiText-2", _metric("wikitext2/perplexity")),
    ("LAMBADA, accuracy", _metric("lambada_openai/acc")),
    ("LAMBADA, perplexity", _metric("lambada_openai/perplexity")),
    ("BoolQ, accuracy", _metric("boolq/acc")),
    ("CrowS-Pairs, stereotype share", _metric("crows/stereotype-preference")),
    ("CrowS-Pairs, even rows", _metric("crows-even/stereotype-preference")),
    ("CrowS-Pairs, odd rows", _metric("crows-odd/stereotype-preference")),
    ("CrowS-Pairs, sequence gap", _metric("crows/sequence-gap")),
    ("CrowS-Pairs by category", _metric("crows/stereotype-preference", categories=True)),
    ("WinoBias, share of pro-stereotypical sentences", _metric("winobias/stereotype-preference")),
    ("WinoBias, test", _metric("winobias-test/stereotype-preference")),
    ("WinoBias, dev", _metric("winobias-dev/stereotype-preference")),
    ("BBQ, ambiguous score", _metric("bbq/amb_bias_score")),
    ("BBQ, ambiguous score by category", _metric("bbq/amb_bias_score", categories=True)),
    ("BBQ, disambiguated score by category", _metric("bbq/disamb_bias_score", categories=True)),
    ("BBQ, accuracy on ambiguous contexts", _metric("bbq/accuracy_amb")),
    ("BBQ, accuracy on disambiguated contexts", _metric("bbq/accuracy_disamb")),
)


def _table(rows: Rows, wanted: Callable[[ResultRow], bool]) -> list[str]:
    found = [(name, row) for name, of_arm in rows.items() for row in of_arm if wanted(row)]
    if not found:
        return []
    by_category = any(row.category is not None for _, row in found)
    head = ["arm", *(["category"] if by_category else []), "before", "after", "difference", "change", "kept"]
    head += ["flips", "p", "Holm's p", "seen", "n", "clusters"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, row in found:
        cells = [name, *([row.category or ""] if by_category else []), _plain(row.before, row), _plain(row.after, row)]
        cells += [
            _interval(row.difference, row.difference_low, row.difference_high, lambda v, r=row: _signed(v, r)),
            _interval(row.change, row.ci_low, row.ci_high, lambda v: f"{v:+.1%}"),
            _interval(row.retention, row.retention_low, row.retention_high, lambda v: f"{v:.1%}"),
            "" if row.only_before is None else f"{row.only_before} / {row.only_after}",
            _p(row.p_value),
            _p(row.p_adjusted),
            "" if row.detectable is None else _signed(row.detectable, row).lstrip("+"),
            str(row.n),
            "" if row.clusters is None else str(row.clusters),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    kept = [place for place, _ in enumerate(head) if any(line.split(" | ")[place].strip("| ") for line in lines[2:])]
    if noted := sorted({row.note for _, row in found if row.note}):
        return [*(_columns(line, kept) for line in lines), "", *noted]
    return [_columns(line, kept) for line in lines]


def _columns(line: str, kept: Sequence[int]) -> str:
    if line.startswith("|---"):
        return "|" + "---|" * len(kept)
    cells = line.removeprefix("| ").removesuffix(" |").split(" | ")
    return "| " + " | ".join(cells[place] for place in kept) + " |"


def _share(row: ResultRow) -> bool:
    return row.unit.startswith("share")


def _plain(value: float | None, row: ResultRow) -> str:
    if value is None:
        return ""
    return f"{value:.2%}" if _share(row) else (f"{value:.4g}" if abs(value) < 1e6 else f"{value:.2e}")


def _signed(value: float, row: ResultRow) -> str:
    return f"{100 * value:+.2f} pts" if _share(row) else f"{value:+.3g}"


def _interval(value: float | None, low: float | None, high: float | None, form: Callable[[float], str]) -> str:
    if value is None:
        return ""
    return form(value) if low is None or high is None else f"{form(value)} [{form(low)}, {form(high)}]"


def _p(value: float | None) -> str:
    return "" if value is None else ("< 0.001" if value < 0.001 else f"{value:.3f}")


# -- goals -----------------------------------------------------------------------------------------------------------------


def goals(rows: Rows, ours: str | None, crows_arm: str | None, transfer_arm: str | None, controls: Sequence[str]) -> list[str]:
    """The goals table: wanted, found, met or not."""
    if ours is None:
        return ["No arm was named as ours, so that no goal is judged."]
    arm = rows[ours]
    lines = [
        "## Goals",
        "",
        f"About the arm `{ours}` where no other is named; controls: {', '.join(controls) or 'none were run'}.",
        "",
        "| goal | at least | found | |",
        "|---|---|---|---|",
    ]
    for goal, least, found, met in (
        _divergence(arm, {name: rows[name] for name in controls}),
        _perplexity(arm),
        _kept(arm, "lambada_openai/acc", "LAMBADA retention"),
        _kept(arm, "boolq/acc", "BoolQ retention"),
        _crows(rows, crows_arm),
        _transfer(rows, transfer_arm),
        _no_worse(arm),
    ):
        word = "not measured" if met is None else ("**met**" if met else "not met")
        lines.append(f"| {goal} | {least} | {found} | {word} |")
    return lines


Goal = tuple[str, str, str, bool | None]


def _one(rows: Sequence[ResultRow], wanted: Callable[[ResultRow], bool]) -> ResultRow | None:
    return next((row for row in rows if wanted(row)), None)


def _divergence(arm: Sequence[ResultRow], controls: Rows) -> Goal:
    goal, least = "held-out next-token divergence", "-50 %, interval clear of 0, better than every control"
    wanted = _metric("next-token-divergence", split="heldout")
    row = _one(arm, wanted)
    if row is None or row.change is None or row.ci_high is None:
        return goal, least, "", None
    found = _interval(row.change, row.ci_low, row.ci_high, lambda v: f"{v:+.1%}")
    others = [other for rows in controls.values() if (other := _one(rows, wanted)) is not None and other.change is not None]
    best = min((other.change for other in others if other.change is not None), default=None)
    if best is None:
        return goal, least, f"{found}; no control was run", False
    return goal, least, f"{found}; best control {best:+.1%}", row.change <= -0.5 and row.ci_high < 0 and row.ci_high < best


def _perplexity(arm: Sequence[ResultRow]) -> Goal:
    goal, least = "perplexity on WikiText-2", "+2 % at most, upper bound"
    row = _one(arm, _metric("wikitext2/perplexity"))
    if row is None or row.change is None:
        return goal, least, "", None
    found = _interval(row.change, row.ci_low, row.ci_high, lambda v: f"{v:+.2%}")
    return goal, least, found, row.ci_high is not None and row.ci_high <= 0.02


def _kept(arm: Sequence[ResultRow], metric: str, goal: str) -> Goal:
    row = _one(arm, _metric(metric))
    if row is None or row.retention is None:
        return goal, "98 %", "", None
    found = _interval(row.retention, row.retention_low, row.retention_high, lambda v: f"{v:.1%}")
    text = _one(arm, _metric(metric.replace("/acc", "/perplexity")))
    if text is not None and text.change is not None:  # the same items, seen with more than right or wrong
        found += f"; perplexity {_interval(text.change, text.ci_low, text.ci_high, lambda v: f'{v:+.1%}')}"
    return goal, "98 %, lower bound", found, row.retention_low is not None and row.retention_low >= 0.98


def _crows(rows: Rows, name: str | None) -> Goal:
    goal, least = (
        f"CrowS-Pairs, even rows, distance of the share from 50 % (`{name}`)",
        "-60 %, McNemar p < 0.01, perplexity +2 % at most",
    )
    arm = rows.get(name or "", ())
    row, text = _one(arm, _metric("crows-even/stereotype-preference")), _one(arm, _metric("wikitext2/perplexity"))
    if row is None or row.change is None or row.p_value is None or text is None or text.change is None:
        return goal, least, "", None
    found = f"{_interval(row.change, row.ci_low, row.ci_high, lambda v: f'{v:+.1%}')}, p {_p(row.p_value)}, perplexity {text.change:+.2%}"
    return goal, least, found, row.change <= -0.6 and row.p_value < 0.01 and text.change <= 0.02


def _transfer(rows: Rows, name: str | None) -> Goal:
    """WinoBias whole and the ambiguous score of every BBQ category: one family for Holm."""
    goal, least = (
        f"a public benchmark that chose nothing (WinoBias, BBQ) (`{name}`)",
        "-15 %, significant after Holm, capability 95 % or more",
    )
    arm = rows.get(name or "", ())
    family = [
        row
        for row in arm
        if row.p_value is not None
        and (_metric("winobias/stereotype-preference")(row) or _metric("bbq/amb_bias_score", categories=True)(row))
    ]
    capabilities = {"LAMBADA": "lambada_openai/acc", "BoolQ": "boolq/acc"}
    kept = {
        name: row.retention
        for name, metric in capabilities.items()
        for row in arm
        if row.metric == metric and row.category is None and row.retention is not None
    }
    if not family:
        return goal, least, "", None
    adjusted = holm([row.p_value for row in family if row.p_value is not None])
    found, met = [], False
    for row, p in zip(family, adjusted, strict=True):
        change = "no change can be told" if row.change is None else f"{row.change:+.0%}"
        found.append(f"{row.metric.partition('/')[0]} {row.category or ''} {change}, p {_p(p)}".replace("  ", " "))
        met |= row.change is not None and row.change <= -0.15 and p < 0.05
    told = [f"{name} {kept[name]:.1%}" if name in kept else f"{name} not measured" for name in capabilities]
    whole = len(kept) == len(capabilities) or any(value < 0.95 for value in kept.values())  # what is missing could still fail
    verdict = met and all(value >= 0.95 for value in kept.values()) if whole else None
    return goal, least, "; ".join(found + told), verdict


def significantly_worse(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """Rows of categories that are further from the ideal than before, significantly after Holm."""
    return [
        row
        for row in rows
        if row.category is not None and row.after is not None and row.p_adjusted is not None and row.p_adjusted < 0.05
        if abs(row.after - row.ideal) > abs(row.before - row.ideal)
    ]


def largest_harm(row: ResultRow) -> float | None:
    """Upper bound of the growth of the distance from the ideal, in the unit of the row; None without an interval."""
    if row.before is None or row.difference_low is None or row.difference_high is None:
        return None
    ends = [abs(row.before + bound - row.ideal) for bound in (row.difference_low, row.difference_high)]
    return max(ends) - abs(row.before - row.ideal)


def _no_worse(arm: Sequence[ResultRow]) -> Goal:
    """Non-inferiority in every category: no upper bound above 3 points, uncorrected, since a correction hides harm."""
    goal, least = "BBQ and CrowS-Pairs: no category worse", "upper bound of each at most +0.03"
    judged = ("crows/stereotype-preference", "bbq/amb_bias_score", "bbq/disamb_bias_score")
    rows = [row for row in arm if row.metric in judged and row.category is not None and row.after is not None]
    if not rows:
        return goal, least, "", None
    bounds = {f"{row.metric} {row.category}": largest_harm(row) for row in rows}
    above = {name: bound for name, bound in bounds.items() if bound is None or bound > 0.03}
    told = ", ".join(f"{name} {'no interval' if bound is None else f'{bound:+.3f}'}" for name, bound in above.items())
    return goal, least, f"{len(above)} of {len(rows)} above" + (f": {told}" if told else ""), not above
