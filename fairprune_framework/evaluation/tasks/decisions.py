"""Decision gap: the log-odds of yes against no in decisions about a person, by the group that the person belongs to.

    L = log(p(yes) + p(Yes)) - log(p(no) + p(No)), natural log, at the end of the text

after Tamkin et al. 2023 (arXiv 2312.03689), who fit a mixed model of the group with an intercept for each decision. Here every decision is
asked for every group, so that the fitted effects are the means over decisions of L less the decision's own mean; intervals are over
decisions. Yes is the outcome that the person hopes for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from fairprune_framework.contrasts import formats
from fairprune_framework.errors import UserError, did_you_mean
from fairprune_framework.evaluation.tasks.own import Items, OwnTask, Question, Read

BUILTIN = "builtin:en"
FIELDS = ("template_id", "attribute", "group", "text")
WORDS: Mapping[str, tuple[str, ...]] = {"yes": ("yes", "Yes"), "no": ("no", "No")}
"""Where a file names none: the spellings whose probabilities are added up, each after a blank."""


def path_of(name: str) -> Path | None:
    """The file that `--decisions` names; None: the built-in set.

    Raises:
        UserError: no such file, or a built-in set of another name.
    """
    if name == BUILTIN:
        return None
    if name.startswith("builtin:"):
        raise UserError(f"no built-in decisions {name!r}; there is {BUILTIN}.{did_you_mean(name, [BUILTIN])}")
    if not Path(name).is_file():
        raise UserError(f"--decisions must be {BUILTIN} or a file. There is no file {name}")
    return Path(name)


def read(path: Path | None) -> Read:
    """One question a decision: its texts for all groups of all attributes.

    Raises:
        UserError: a field is missing, a group occurs twice in a decision or not at all, yes without no.
    """
    rows = _builtin() if path is None else _of_file(path)
    decisions: dict[str, dict[tuple[str, str], tuple[str, Mapping[str, tuple[str, ...]]]]] = {}
    groups: dict[str, dict[str, None]] = {}
    for where, row in rows:
        key = (row["attribute"], row["group"])
        known = decisions.setdefault(row["template_id"], {})
        if key in known:
            raise UserError(f"{where}: the decision {row['template_id']!r} has {key[0]} {key[1]!r} a second time")
        known[key] = (row["text"], _words(where, row))
        groups.setdefault(key[0], {})[key[1]] = None
    place = BUILTIN if path is None else str(path)
    for attribute, names in groups.items():
        if len(names) < 2:
            raise UserError(f"{place}: the attribute {attribute!r} has one group, {next(iter(names))!r}; a gap needs two")
    questions = []
    for template, known in decisions.items():
        for attribute in dict.fromkeys(key[0] for key in known):
            missing = [name for name in groups[attribute] if (attribute, name) not in known]
            if missing:
                raise UserError(
                    f"{place}: the decision {template!r} has no text for {attribute} {missing[0]!r}, which others have"
                )
        facts = [{"attribute": attribute, "group": group} for attribute, group in known]
        requests: list[tuple[str, str]] = []
        for fact, (text, words) in zip(facts, known.values(), strict=True):
            fact["yes"], fact["no"] = len(words["yes"]), len(words["no"])  # type: ignore[assignment]
            requests += [(text, f" {word}") for word in (*words["yes"], *words["no"])]
        questions.append(Question(cluster=template, requests=tuple(requests), facts={"groups": facts}))
    return Read(questions=tuple(questions))


Rows = list[tuple[str, dict[str, Any]]]
"""(place as an error names it, fields)."""


def _builtin() -> Rows:
    with resources.as_file(resources.files(__package__) / "decisions_en.yaml") as file:
        content = formats.document(file)
    rows: Rows = []
    for template, parts in content["templates"].items():
        for attribute, groups in content["attributes"].items():
            for group, person in groups.items():
                text = parts["text"].format(person=person, Person=person[0].upper() + person[1:])
                whole = content["question"].format(text=text, question=parts["question"])
                rows.append((BUILTIN, {"template_id": template, "attribute": attribute, "group": group, "text": whole}))
    return rows


def _of_file(path: Path) -> Rows:
    rows: Rows = []
    for row in formats.rows(path):
        if row.problem is not None:
            raise UserError(f"{row.where}: {row.problem}")
        for name in FIELDS:
            value = row.data.get(name)
            if value is None or not str(value).strip():
                raise UserError(f"{row.where}: a decision needs {', '.join(FIELDS)}; {name!r} is missing")
        rows.append((row.where, {**row.data, **{name: str(row.data[name]) for name in FIELDS}}))
    if not rows:
        raise UserError(f"{path} holds no decision")
    return rows


def _words(where: str, row: Mapping[str, Any]) -> Mapping[str, tuple[str, ...]]:
    """The words of a row's two answers: both or neither are named, as a word or a list of words."""
    given = {name: row.get(name) for name in WORDS}
    if not any(given.values()):
        return WORDS
    found = {}
    for name, value in given.items():
        words = [value] if isinstance(value, str) else value
        if (
            not isinstance(words, (list, tuple))
            or not words
            or not all(isinstance(word, str) and word.strip() for word in words)
        ):
            raise UserError(f"{where}: a decision names words for both answers or for none; {name!r} is {value!r}")
        found[name] = tuple(dict.fromkeys(word.strip() for word in words))
    if set(found["yes"]) & set(found["no"]):
        raise UserError(f"{where}: {sorted(set(found['yes']) & set(found['no']))[0]!r} is a word for yes and for no")
    return found


def items(questions: Sequence[Question], answers: Sequence[Sequence[float]]) -> Items:
    """Of each decision one item an attribute (its groups together), and one a group (against the decision's mean)."""
    odds = [_log_odds(question, log_p) for question, log_p in zip(questions, answers, strict=True)]
    names = [name for attribute in _attributes(questions) for name in metrics_of(attribute)]
    found: Items = []
    for question, own in zip(questions, odds, strict=True):
        for attribute, by_group in own.items():
            gap, ratio, deviation, spread = metrics_of(attribute)
            values, mean = list(by_group.values()), sum(by_group.values()) / len(by_group)
            common = {"cluster": question.cluster, **dict.fromkeys(names)}
            whole = {
                gap: [*values, 1.0],
                ratio: [*map(_probability, values), 1.0],
                spread: [mean, mean * mean, 1.0],
            }
            found.append({"id": f"{question.cluster}/{attribute}", "category": None, **common, **whole})
            found += [
                {
                    "id": f"{question.cluster}/{attribute}/{group}",
                    "category": f"{attribute}: {group}",
                    **common,
                    deviation: value - mean,
                }
                for group, value in by_group.items()
            ]
    return found


def _log_odds(question: Question, log_p: Sequence[float]) -> dict[str, dict[str, float]]:
    """attribute -> group -> L."""
    found: dict[str, dict[str, float]] = {}
    start = 0
    for group in question.facts["groups"]:
        middle = start + group["yes"]
        end = middle + group["no"]
        value = _log_sum(log_p[start:middle]) - _log_sum(log_p[middle:end])
        found.setdefault(group["attribute"], {})[group["group"]] = value
        start = end
    return found


def _probability(odds: float) -> float:
    """Of yes, where only yes and no are counted."""
    return (1 + math.tanh(odds / 2)) / 2  # unlike 1 / (1 + exp(-odds)), never beyond what a float holds


def _log_sum(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values))


def _attributes(questions: Sequence[Question]) -> list[str]:
    return list(dict.fromkeys(group["attribute"] for question in questions for group in question.facts["groups"]))


def metrics_of(attribute: str) -> tuple[str, str, str, str]:
    """Names: gap, ratio of probabilities, log-odds of a group, spread over decisions."""
    return f"gap-{attribute}", f"four_fifths-{attribute}", f"log_odds-{attribute}", f"facts-{attribute}"


def metrics(items: Items) -> Mapping[str, Mapping[str, Any]]:
    """Of `TaskResult`."""
    found: dict[str, Mapping[str, Any]] = {}
    first = metrics_of("")[0]
    for attribute in [name.removeprefix(first) for name in items[0] if name.startswith(first)]:  # every item has all names
        gap, ratio, deviation, spread = metrics_of(attribute)
        control = "a control: no demographic meaning" if attribute.startswith("control") else None
        for name, aggregation, note in (
            (gap, "largest_gap", control),
            (ratio, "smallest_ratio", control),
            (deviation, "deviation", "log-odds of yes less the mean of the groups"),
            (spread, "spread", "standard deviation over decisions of the groups' mean: how much the facts count"),
        ):
            found[name] = {"aggregation": aggregation, "higher_is_better": None, "note": note}
            found[name] = {**found[name], "pooled": name != deviation, "by_category": name == deviation}
    return found


DECISIONS = OwnTask(version=1, read=read, items=items, metrics=metrics)
