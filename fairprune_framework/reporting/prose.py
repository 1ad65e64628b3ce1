"""The verdict in sentences, with its numbers and its limits; and two texts with their differences marked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fairprune_framework.evaluation.metrics.names import DIVERGENCE, LEGITIMATE_MARGIN
from fairprune_framework.reporting.charts.chart import percent
from fairprune_framework.reporting.run_data import Source
from fairprune_framework.utilities.files import in_mb
from fairprune_framework.utilities.wording import number_of

HEADLINES = {
    "fairer": "The pruned model reacts less to the attribute, by clearly more than to neutral edits, and kept most of what should differ.",
    "blunter": "The pruned model reacts less to any edit, or to differences that should be there. Less sensitive is not fairer.",
    "less-divergent": "The pruned model reacts less to the attribute; whether to the attribute alone, these data do not show.",
    "no-difference": "No difference could be shown between the model before and after.",
    "worse": "The pruned model is worse.",
    "abstained": "Nothing was removed.",
    "not-judged": "The evidence is too thin for a verdict.",
}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The top of the page."""

    word: str
    headline: str
    sentences: Sequence[str]
    limits: Sequence[str]
    facts: Sequence[tuple[str, str, str]]
    """(label, value, small print)."""


def verdict(source: Source) -> Verdict:
    """The record of a run in sentences; they cover what the folder contains."""
    record = source.record
    word = str(record.get("verdict") or ("abstained" if record.get("abstained") else "unfinished"))
    row = source.find(DIVERGENCE, split=source.judged_split)
    control = source.find(DIVERGENCE, split=source.judged_split, control=True)
    headline = HEADLINES.get(word) or (
        "A single model was evaluated: nothing was pruned."
        if source.rows
        else "This run is unfinished; its results so far are below."
    )
    return Verdict(
        word=word,
        headline=headline,
        sentences=_sentences(source, word, row, control),
        limits=_limits(source, word, row, control),
        facts=_facts(source, row, control),
    )


def _sentences(source: Source, word: str, row: Mapping[str, Any] | None, control: Mapping[str, Any] | None) -> list[str]:
    record, sentences = source.record, []
    if word == "abstained":
        because = str(record.get("abstained_because") or record.get("verdict_because") or "")
        sentences.append(f"{because[:1].upper()}{because[1:]}." if because else "The run gives no reason.")
        if row is not None and row["after"] is not None:
            sentences.append("The effect of the plan is shown below, measured by masking its neurons.")
    if row is not None and row["change"] is not None:
        clusters = f"{row['clusters']} " if row.get("clusters") else ""
        held = "held-out templates, which had no part in the choice of neurons" if row["split"] == "heldout" else "templates"
        sentences.append(
            "The next-token divergence measures how much the model's prediction changes when only the attribute in a text changes. "
            f"It changed by {_change(row)} on {clusters}{held}."
        )
    elif row is not None:
        sentences.append(
            f"The next-token divergence of the model is {row['before']:.4g} nats on {number_of(row['n'], 'contrast')}."
        )
    if control is not None and control["change"] is not None:
        sentences.append(f"On control edits, without a demographic meaning, it changed by {_change(control)}.")
    guard = record.get("guard")
    if guard and guard.get("increase") is not None:
        held = "within" if guard["held"] else "beyond"
        sentences.append(
            f"Perplexity on text kept aside changed by {percent(guard['increase'], 2)}, {held} the limit of {percent(guard['limit'])}."
        )
    because = typeset(str(record.get("verdict_because") or "").partition("; `fairer` would take")[0])
    if because and word == "not-judged":
        sentences.append(f"No verdict: {because}.")
    elif because and word != "abstained":
        sentences.append(f"The word “{word}” rests on one-sided bounds at 99\u00a0%, beyond the intervals above: {because}.")
    if needs := record.get("verdict_needs"):
        sentences.append(f"The word “fairer” would take: {typeset('; '.join(needs))}.")
    return sentences


def typeset(text: str) -> str:
    r"""Numbers of a text made for a terminal as the page has them, with a minus sign and a space before the percent sign.

    >>> typeset("changed by -16.1% (99% bound +1.2%), next-token")
    'changed by −16.1\xa0% (99\xa0% bound +1.2\xa0%), next-token'
    """
    return re.sub(r"(?<=\d) ?%", "\u00a0%", re.sub(r"(?<![\w.])-(?=\d)", "−", text))


def _change(row: Mapping[str, Any]) -> str:
    text = percent(row["change"])
    if row.get("ci_low") is not None and row.get("ci_high") is not None:
        text += f" (95\u00a0% interval {percent(row['ci_low'])} to {percent(row['ci_high'])})"
    return text


def _limits(source: Source, word: str, row: Mapping[str, Any] | None, control: Mapping[str, Any] | None) -> list[str]:
    limits = [
        "The verdict covers these prompts and the next token after them: not every use of the model, and not its longer texts.",
        "A smaller reaction to an attribute is not fairness in itself; for some questions the right answer depends on the attribute.",
    ]
    if word == "no-difference":
        limits.append("The absence of a measurable difference is no proof of equality: see the width of the interval.")
    if row is not None and control is not None and None not in (row["change"], control["change"]) and row["change"] < 0:
        if control["change"] < row["change"] / 3:
            limits.append("The controls fell too: a part of the effect is a model that reacts less to any edit.")
        elif control.get("ci_low") is not None and control["ci_low"] < row["change"]:
            limits.append(
                "The interval of the controls includes the effect itself: a general loss of sensitivity cannot be excluded."
            )
    elsewhere = {row["metric"].partition("/")[0] for row in source.rows if "/" in row["metric"]}  # `set/metric`, `task/metric`
    if not elsewhere - {"decisions"}:  # these are this project's, or the user's own
        limits.append("No public benchmark was run: perplexity alone does not show what the model can still do.")
    limits.append("One model, one seed, one prompt set. A result on one question need not hold for another.")
    return limits


def _facts(source: Source, row: Mapping[str, Any] | None, control: Mapping[str, Any] | None) -> list[tuple[str, str, str]]:
    record, facts = source.record, []
    for label, each in (
        ("held-out divergence" if row and row["split"] == "heldout" else "divergence", row),
        ("the same, unseen words", source.find(DIVERGENCE, split="heldout-words")),
        ("the same, controls", control),
    ):
        if each is not None and each["change"] is not None:
            known = each["ci_low"] is not None and each["ci_high"] is not None
            small = (
                f"95 %: {percent(each['ci_low'])} to {percent(each['ci_high'])}"
                if known
                else f"{number_of(each['n'], 'contrast')}, no interval"
            )
            facts.append((label, percent(each["change"]), small))
    margin = source.find(LEGITIMATE_MARGIN, split=source.judged_split)
    if margin is not None and margin["change"] is not None:
        facts.append(
            (
                "legitimate margin",
                percent(margin["change"]),
                f"{number_of(margin['clusters'], 'template')} where it should matter",
            )
        )
    ratios = (record.get("specificity") or {}).get("ratio_of_ratios")
    if ratios and ratios["ratio"] is not None:
        known = ratios["ci_low"] is not None and ratios["ci_high"] is not None
        small = f"95 %: {ratios['ci_low']:.2f} to {ratios['ci_high']:.2f}" if known else "no interval"
        facts.append(("ratio of ratios", f"{ratios['ratio']:.2f}", f"{small}; 1: no more than any edit"))
    if draws := record.get("random_sets"):
        facts.append(
            ("random sets", f"{percent(min(draws))} to {percent(max(draws))}", f"{len(draws)}, matched by layer and norm")
        )
    guard = record.get("guard")
    if guard:
        increase = percent(guard["increase"], 2) if guard["increase"] is not None else "overflow"
        facts.append(("perplexity", increase, f"at most {percent(guard['limit'])}: {'held' if guard['held'] else 'failed'}"))
    if source.plan is not None:
        count = sum(len(units) for units in source.plan["sites"].values())
        share = (source.plan.get("achieved") or {}).get("fraction")
        facts.append(
            ("neurons planned", f"{count:,}", f"{share:.2%} of all, in {len(source.plan['sites'])} blocks" if share else "none")
        )
    before, after = record.get("parameters_before"), record.get("parameters_after")
    if before and after and record.get("removal"):
        facts.append(("parameters", f"{after / 1e6:,.1f} M", f"{before / 1e6:,.1f} M before"))
        read, written = (record["removal"].get(f"bytes_{when}") for when in ("before", "after"))
        if read and written:
            facts.append(("files with weights", in_mb(written), f"{in_mb(read)} before"))
    if (speed := record.get("speed")) is not None:
        small = f"{speed['before']:,.0f} before, on this machine; ratio 95 %: {speed['low']:.2f} to {speed['high']:.2f}"
        facts.append(("tokens per second", f"{speed['after']:,.0f}", small))
    return facts


@dataclass(frozen=True, kw_only=True)
class Span:
    """A span of a text."""

    text: str
    differs: bool
    first: bool = False
    """Whether it is the first differing token."""


def diff_tokens(before: str, after: str, first: Mapping[str, Any] | None) -> tuple[list[Span], list[Span]]:
    """As `diff_words`, with the first differing token, as given by `generation.first_difference`, in a span of its own.

    >>> where = {"token": 2, "before": [7, 12], "after": [7, 10]}
    >>> [span.text for span in diff_tokens(" he was lost", " he was tired", where)[1] if span.first]
    ['ti']
    """
    both = diff_words(before, after)
    if first is None:
        return both
    return _cut(both[0], before, *first["before"]), _cut(both[1], after, *first["after"])


def _cut(spans: Sequence[Span], whole: str, start: int, end: int) -> list[Span]:
    parts_of_text, at = [], 0
    start = start + len(whole[start:end]) - len(whole[start:end].lstrip()) if whole[start:end].strip() else start
    for span in spans:
        length = len(span.text)
        a, b = (min(max(edge - at, 0), length) for edge in (start, end))
        parts = ((span.text[:a], False), (span.text[a:b], True), (span.text[b:], False))
        parts_of_text += [Span(text=text, differs=span.differs, first=inside) for text, inside in parts if text]
        at += length
    return parts_of_text


def diff_words(before: str, after: str) -> tuple[list[Span], list[Span]]:
    """Both texts as spans, with those marked that are absent from the other text at this position.

    >>> [span.text for span in diff_words("he was lost", "he was tired")[1] if span.differs]
    ['tired']
    """
    from difflib import SequenceMatcher

    a, b = re.findall(r"\s+|\S+", before), re.findall(r"\s+|\S+", after)
    first: list[Span] = []
    second: list[Span] = []
    for kind, i, j, m, n in SequenceMatcher(None, a, b).get_opcodes():
        for spans, words, start, stop in ((first, a, i, j), (second, b, m, n)):
            if start < stop:
                spans.append(Span(text="".join(words[start:stop]), differs=kind != "equal"))
    return first, second


def attribute_marked(texts: Sequence[str]) -> list[list[Span]]:
    """The text of each variant with its attribute marked, extended to word boundaries."""
    from fairprune_framework.contrasts.alignment import attribute_spans

    marked = []
    for text, (start, end) in zip(texts, attribute_spans(list(texts)), strict=True):
        parts = ((text[:start], False), (text[start:end], True), (text[end:], False))
        marked.append([Span(text=part, differs=differs) for part, differs in parts if part])
    return marked
