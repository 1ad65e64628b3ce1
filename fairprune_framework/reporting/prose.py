"""The verdict in plain words, with the numbers it rests on and what it does not show; and texts with what differs marked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fairprune_framework.evaluation.metrics.names import ACTIVATION_DIFFERENCE, DIVERGENCE, LANGUAGE_METRICS
from fairprune_framework.reporting.charts.chart import percent
from fairprune_framework.reporting.run_data import Source

HEADLINES = {
    "fairer": "The pruned model reacts less to the attribute, and the guard held.",
    "no-difference": "No difference could be shown between the model before and after.",
    "worse": "The pruned model is worse.",
    "abstained": "Nothing was taken out.",
    "not-judged": "The evidence is too thin for a verdict.",
}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What stands on top of the page."""

    word: str
    headline: str
    sentences: Sequence[str]
    limits: Sequence[str]
    facts: Sequence[tuple[str, str, str]]
    """(label, value, small print)."""


def verdict(source: Source) -> Verdict:
    """Put the record of a run into words; what the folder does not hold is not said."""
    record = source.record
    word = str(record.get("verdict") or ("abstained" if record.get("abstained") else "unfinished"))
    row = source.find(DIVERGENCE, split=source.judged_split)
    control = source.find(DIVERGENCE, split=source.judged_split, control=True)
    headline = HEADLINES.get(word) or (
        "One model, measured alone: nothing was pruned." if source.rows else "This run is not finished; below is what there is."
    )
    return Verdict(
        word=word,
        headline=headline,
        sentences=_sentences(source, word, row, control),
        limits=_limits(source, word, row, control),
        facts=_facts(source, row, control),
    )


def _sentences(source: Source, word: str, row: Mapping[str, Any] | None, control: Mapping[str, Any] | None) -> list[str]:
    record, said = source.record, []
    if word == "abstained":
        because = str(record.get("abstained_because") or record.get("verdict_because") or "")
        said.append(f"{because[:1].upper()}{because[1:]}." if because else "The run gives no reason.")
        if row is not None and row["after"] is not None:
            said.append("What would have happened is shown below, measured with the neurons masked.")
    if row is not None and row["change"] is not None:
        held = "held-out templates, which took no part in the choice" if row["split"] == "heldout" else "templates"
        clusters = f" ({row['clusters']} of them)" if row.get("clusters") else ""
        said.append(
            "The next-token divergence says how far the model's prediction moves when only the attribute in a text changes. "
            f"It changed by {_change(row)} on {held}{clusters}."
        )
    elif row is not None:
        said.append(f"The next-token divergence of the model is {row['before']:.4g} nats on {row['n']} contrasts.")
    if control is not None and control["change"] is not None:
        said.append(f"On control edits, which have no demographic meaning, it changed by {_change(control)}.")
    guard = record.get("guard")
    if guard and guard.get("increase") is not None:
        held = "within" if guard["held"] else "beyond"
        said.append(
            f"Perplexity on text kept aside changed by {percent(guard['increase'], 2)}, {held} the limit of {percent(guard['limit'])}."
        )
    if word == "not-judged" and record.get("verdict_because"):
        said.append(f"No verdict: {record['verdict_because']}.")
    return said


def _change(row: Mapping[str, Any]) -> str:
    text = percent(row["change"])
    if row.get("ci_low") is not None and row.get("ci_high") is not None:
        text += f" (95\u00a0% interval {percent(row['ci_low'])} to {percent(row['ci_high'])})"
    return text


def _limits(source: Source, word: str, row: Mapping[str, Any] | None, control: Mapping[str, Any] | None) -> list[str]:
    said = [
        "It is about these prompts and the next token after them: not about every use of the model, and not about what it "
        "writes at length.",
        "A smaller reaction to an attribute is not fairness as such; there are questions for which the right answer depends on it.",
    ]
    if word == "no-difference":
        said.append("No difference found is not proof that there is none: see how wide the interval is.")
    if row is not None and control is not None and None not in (row["change"], control["change"]) and row["change"] < 0:
        if control["change"] < row["change"] / 3:
            said.append("The controls fell too: a part of the effect is a model that reacts less to any edit.")
        elif control.get("ci_low") is not None and control["ci_low"] < row["change"]:
            said.append(
                "The interval of the controls reaches as far as the effect itself, so that a general loss of sensitivity is not ruled out."
            )
    if not any(row["metric"] not in _KNOWN for row in source.rows):
        said.append("No public benchmark was run: perplexity alone does not say what the model can still do.")
    said.append("One model, one seed, one prompt set. What was chosen on one question need not answer another.")
    return said


_KNOWN = (DIVERGENCE, ACTIVATION_DIFFERENCE, *LANGUAGE_METRICS)


def _facts(source: Source, row: Mapping[str, Any] | None, control: Mapping[str, Any] | None) -> list[tuple[str, str, str]]:
    record, found = source.record, []
    for label, each in (
        ("held-out divergence" if row and row["split"] == "heldout" else "divergence", row),
        ("the same, controls", control),
    ):
        if each is not None and each["change"] is not None:
            known = each["ci_low"] is not None and each["ci_high"] is not None
            small = (
                f"95 %: {percent(each['ci_low'])} to {percent(each['ci_high'])}"
                if known
                else f"{each['n']} contrasts, no interval"
            )
            found.append((label, percent(each["change"]), small))
    guard = record.get("guard")
    if guard:
        increase = percent(guard["increase"], 2) if guard["increase"] is not None else "beyond numbers"
        found.append(("perplexity", increase, f"at most {percent(guard['limit'])}: {'held' if guard['held'] else 'failed'}"))
    if source.plan is not None:
        count = sum(len(units) for units in source.plan["sites"].values())
        share = (source.plan.get("achieved") or {}).get("fraction")
        found.append(
            ("neurons planned", f"{count:,}", f"{share:.2%} of all, in {len(source.plan['sites'])} blocks" if share else "none")
        )
    before, after = record.get("parameters_before"), record.get("parameters_after")
    if before and after and record.get("removal"):
        found.append(("parameters", f"{after / 1e6:,.1f} M", f"{before / 1e6:,.1f} M before"))
    return found


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of a text."""

    text: str
    differs: bool
    first: bool = False
    """It is the first token that differs."""


def tokens_apart(before: str, after: str, first: Mapping[str, Any] | None) -> tuple[list[Piece], list[Piece]]:
    """As `words_apart`, with the first differing token, as `generation.first_difference` found it, a piece of its own.

    >>> where = {"token": 2, "before": [7, 12], "after": [7, 10]}
    >>> [piece.text for piece in tokens_apart(" he was lost", " he was tired", where)[1] if piece.first]
    ['ti']
    """
    both = words_apart(before, after)
    if first is None:
        return both
    return _cut(both[0], before, *first["before"]), _cut(both[1], after, *first["after"])


def _cut(pieces: Sequence[Piece], whole: str, start: int, end: int) -> list[Piece]:
    found, at = [], 0
    start = start + len(whole[start:end]) - len(whole[start:end].lstrip()) if whole[start:end].strip() else start
    for piece in pieces:
        length = len(piece.text)
        a, b = (min(max(edge - at, 0), length) for edge in (start, end))
        parts = ((piece.text[:a], False), (piece.text[a:b], True), (piece.text[b:], False))
        found += [Piece(text=text, differs=piece.differs, first=inside) for text, inside in parts if text]
        at += length
    return found


def words_apart(before: str, after: str) -> tuple[list[Piece], list[Piece]]:
    """Both texts in pieces, those marked that the other does not have at that place.

    >>> [piece.text for piece in words_apart("he was lost", "he was tired")[1] if piece.differs]
    ['tired']
    """
    from difflib import SequenceMatcher

    a, b = re.findall(r"\s+|\S+", before), re.findall(r"\s+|\S+", after)
    first: list[Piece] = []
    second: list[Piece] = []
    for kind, i, j, m, n in SequenceMatcher(None, a, b).get_opcodes():
        for found, words, start, stop in ((first, a, i, j), (second, b, m, n)):
            if start < stop:
                found.append(Piece(text="".join(words[start:stop]), differs=kind != "equal"))
    return first, second


def attribute_marked(texts: Sequence[str]) -> list[list[Piece]]:
    """Each variant's text with the part marked at which the variants differ, widened to words."""
    from fairprune_framework.contrasts.alignment import attribute_spans

    found = []
    for text, (start, end) in zip(texts, attribute_spans(list(texts)), strict=True):
        parts = ((text[:start], False), (text[start:end], True), (text[end:], False))
        found.append([Piece(text=part, differs=differs) for part, differs in parts if part])
    return found
