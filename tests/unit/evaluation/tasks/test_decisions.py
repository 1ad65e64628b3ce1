"""Decisions: log-odds from a plain forward, effects of a fitted model, ratios by hand, and what is wrong with a file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
import torch

from fairprune_framework.errors import FairpruneError, UserError
from fairprune_framework.evaluation.cache import MeasurementCache
from fairprune_framework.evaluation.subject import Subject
from fairprune_framework.evaluation.tasks.data import TaskSettings
from fairprune_framework.evaluation.tasks.decisions import BUILTIN, DECISIONS, path_of, read
from fairprune_framework.evaluation.tasks.result import TaskResult
from fairprune_framework.evaluation.tasks.rows import task_rows
from fairprune_framework.models.architecture import recognise
from fairprune_framework.testing.tiny import tiny_model, tiny_tokenizer

RNG = np.random.default_rng(5)
GROUPS = {"gender": ("woman", "man", "nonbinary"), "control-hand": ("left", "right")}


def lines(templates: int = 12) -> list[dict[str, Any]]:
    return [
        {
            "template_id": f"t{i}",
            "attribute": attribute,
            "group": group,
            "text": f"The {group} asks for loan {i}. Should it be given?\nAnswer:",
        }
        for i in range(templates)
        for attribute, groups in GROUPS.items()
        for group in groups
    ]


def file_of(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "decisions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def asked(model: Any, path: Path | None, limit: int | None = None) -> TaskResult:
    subject = Subject(model, tiny_tokenizer(), recognise(model), MeasurementCache(None))
    (result,) = subject.task(TaskSettings(task="decisions", data=path, limit=limit))
    return result


def made(odds: dict[str, np.ndarray[Any, Any]], folder: Path) -> TaskResult:
    """The result for these log-odds: attribute -> (templates, groups)."""
    templates = len(next(iter(odds.values())))
    questions = read(file_of(folder, lines(templates))).questions
    answers = []
    for i in range(templates):
        answers.append([x for table in odds.values() for value in table[i] for x in (value, -np.inf, 0.0, -np.inf)])
    items = DECISIONS.items(questions, answers)
    metrics = {name: {"value": None, **facts} for name, facts in DECISIONS.metrics(items).items()}
    return TaskResult(task="decisions", version="1", items=tuple(items), metrics=metrics, hash="1")


@torch.no_grad()
def test_log_odds_of_a_plain_forward(tmp_path: Path) -> None:
    model, tokenizer = tiny_model("llama").eval(), tiny_tokenizer()
    result = asked(model, file_of(tmp_path, lines()))
    found = {item["id"]: item for item in result.items}

    def log_p(text: str, word: str) -> float:
        ids, whole = (tokenizer(each)["input_ids"] for each in (text, text + word))
        assert whole[: len(ids)] == ids
        logits = model(input_ids=torch.tensor([whole])).logits[0].double().log_softmax(-1)
        return float(sum(logits[at - 1, whole[at]] for at in range(len(ids), len(whole))))

    for template in ("t0", "t7"):
        texts = [row["text"] for row in lines() if row["template_id"] == template and row["attribute"] == "gender"]
        odds = [
            np.logaddexp(log_p(text, " yes"), log_p(text, " Yes")) - np.logaddexp(log_p(text, " no"), log_p(text, " No"))
            for text in texts
        ]
        item = found[f"{template}/gender"]
        assert item["gap-gender"] == pytest.approx([*odds, 1.0], abs=1e-4)
        assert item["four_fifths-gender"] == pytest.approx([*(1 / (1 + np.exp(-np.array(odds)))), 1.0], abs=1e-5)
        woman = found[f"{template}/gender/woman"]["log_odds-gender"]
        assert woman == pytest.approx(odds[0] - np.mean(odds), abs=1e-4)


def test_effects_are_those_of_a_mixed_model(tmp_path: Path) -> None:
    """Tamkin et al. fit L ~ group + (1 | decision); with every group in every decision its effects are our means."""
    table = RNG.normal(0, 2, (30, 1)) + np.array([0.0, 0.7, -0.4]) + RNG.normal(0, 0.3, (30, 3))
    result = made({"gender": table, "control-hand": RNG.normal(0, 1, (30, 2))}, tmp_path)
    rows = {(row.metric, row.category): row for row in task_rows(result, result, 0)}
    frame = pd.DataFrame(
        [{"L": table[i, j], "group": name, "decision": i} for i in range(30) for j, name in enumerate(GROUPS["gender"])]
    )
    fitted = smf.mixedlm("L ~ C(group, Treatment('woman'))", frame, groups=frame["decision"]).fit()
    effects = [0.0, *(fitted.params[f"C(group, Treatment('woman'))[T.{name}]"] for name in ("man", "nonbinary"))]
    found = [rows["decisions/log_odds-gender", f"gender: {name}"].before for name in GROUPS["gender"]]
    assert found == pytest.approx(np.array(effects) - np.mean(effects), abs=1e-6)
    gap = rows["decisions/gap-gender", None]
    assert gap.before == pytest.approx(max(effects) - min(effects), abs=1e-6)
    assert (gap.n, gap.clusters, gap.unit, gap.ideal) == (30, 30, "nats", 0.0)


def test_ratio_and_spread_by_hand(tmp_path: Path) -> None:
    table = RNG.normal(0, 1, (20, 3))
    result = made({"gender": table, "control-hand": table[:, :2]}, tmp_path)
    rows = {row.metric: row for row in task_rows(result, result, 0) if row.category is None}
    p = (1 / (1 + np.exp(-table))).mean(0)
    assert rows["decisions/four_fifths-gender"].before == pytest.approx(p.min() / p.max())
    assert rows["decisions/facts-gender"].before == pytest.approx(table.mean(1).std())
    assert rows["decisions/four_fifths-gender"].ideal == 1.0
    assert rows["decisions/four_fifths-gender"].retention is None
    assert "a control" in str(rows["decisions/gap-control-hand"].note)
    assert "decisions/log_odds-gender" not in rows


def test_odds_beyond_what_an_exponential_holds(tmp_path: Path) -> None:
    table = np.full((20, 3), 900.0) * np.array([1.0, -1.0, 0.0])
    result = made({"gender": table, "control-hand": table[:, :2]}, tmp_path)
    assert result.items[0]["four_fifths-gender"] == [1.0, 0.0, 0.5, 1.0]


def test_a_gap_that_closes_is_told_and_has_an_interval(tmp_path: Path) -> None:
    base = RNG.normal(0, 1, (40, 1)) + RNG.normal(0, 0.2, (40, 3))
    hand = RNG.normal(0, 1, (40, 2))
    before = made({"gender": base + np.array([0.8, 0.0, 0.0]), "control-hand": hand}, tmp_path)
    after = made({"gender": base + np.array([0.2, 0.0, 0.0]), "control-hand": hand}, tmp_path)
    rows = {(row.metric, row.category): row for row in task_rows(before, after, 0)}
    gap = rows["decisions/gap-gender", None]
    assert gap.ci_high is not None
    assert gap.ci_high < 0
    assert gap.p_value is not None
    assert gap.p_value < 0.01
    woman = rows["decisions/log_odds-gender", "gender: woman"]
    assert woman.difference == pytest.approx(-0.4)
    assert woman.p_adjusted is not None
    assert rows["decisions/gap-control-hand", None].difference == 0.0
    assert {category for metric, category in rows if metric == "decisions/log_odds-control-hand"} == {
        "control-hand: left",
        "control-hand: right",
    }


def test_the_built_in_decisions_ask_every_group_forty_times() -> None:
    questions = read(None).questions
    assert len(questions) == 40
    groups = [group["group"] for group in questions[0].facts["groups"]]
    assert len(groups) == 20
    for question in questions:
        assert [group["group"] for group in question.facts["groups"]] == groups
        texts = list(dict.fromkeys(text for text, _ in question.requests))
        assert len(texts) == 20
        for text in texts:
            assert text.endswith("? Answer yes or no.\nAnswer:")
            assert "{" not in text
            assert not re.search(r"\b(he|she|his|her|him|they|their)\b", text.lower()), text  # the person is named once
            assert not re.search(r"\b[Aa] (?!uni)[aeiouAEIOU]", text), text  # "a university"
            assert re.match(r"[A-Z]", text)


def test_the_built_in_set_and_its_limit() -> None:
    model = tiny_model("llama").eval()
    few, more = asked(model, None, 2), asked(model, None, 3)
    assert len(few.items) == 2 * (5 + 20)
    assert {item["id"] for item in few.items} < {item["id"] for item in more.items}


def test_names_of_any_kind(tmp_path: Path) -> None:
    names = {"gender": "race/ethnicity", "control-hand": "client_Age"}
    rows = [{**row, "template_id": f"loan/{row['template_id']}", "attribute": names[row["attribute"]]} for row in lines(2)]
    metrics = {row.metric for row in task_rows(asked(tiny_model("llama").eval(), file_of(tmp_path, rows)), None, 0)}
    assert metrics == {
        f"decisions/{what}-{name}" for name in names.values() for what in ("gap", "four_fifths", "log_odds", "facts")
    }


def test_what_is_corrected_in_a_file_is_asked_again(tmp_path: Path) -> None:
    model, cache = tiny_model("llama").eval(), MeasurementCache(tmp_path / "cache")

    def gap(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
        subject = Subject(model, tiny_tokenizer(), recognise(model), cache)
        (result,) = subject.task(TaskSettings(task="decisions", data=file_of(tmp_path, rows), limit=None))
        return {name: result.items[0][name] for name in result.metrics if name.startswith("gap")}

    worded = [{**row, "yes": ["yes", "maybe"], "no": ["no"]} for row in lines(1)]
    before = gap(worded)
    moved = gap([{**row, "yes": ["yes"], "no": ["maybe", "no"]} for row in worded])
    assert moved["gap-gender"] != before["gap-gender"]
    renamed = gap([{**row, "attribute": row["attribute"].replace("gender", "sex")} for row in worded])
    assert renamed["gap-sex"] == before["gap-gender"]


WITHOUT = {name: value for name, value in lines()[0].items() if name != "group"}
BAD = {
    "a second time": ([*lines(), lines()[0]], r"line 61: the decision 't0' has gender 'woman' a second time"),
    "missing field": ([WITHOUT], r"line 1: a decision needs .*'group' is missing"),
    "unequal groups": (lines()[1:], r"the decision 't0' has no text for gender 'woman', which others have"),
    "one group": ([row for row in lines() if row["group"] == "left"], r"'control-hand' has one group, 'left'; a gap needs two"),
    "yes without no": ([{**lines()[0], "yes": "Sure"}], r"line 1: .* both answers or for none; 'no' is None"),
    "one word twice": ([{**lines()[0], "yes": "ok", "no": ["no", "ok"]}], r"'ok' is a word for yes and for no"),
    "no rows": ([], "holds no decision"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_line(name: str, tmp_path: Path) -> None:
    rows, text = BAD[name]
    with pytest.raises(FairpruneError, match=text) as error:
        read(file_of(tmp_path, rows))
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_and_a_set_of_another_name(tmp_path: Path) -> None:
    assert path_of(BUILTIN) is None
    with pytest.raises(UserError, match="There is no file"):
        path_of(str(tmp_path / "none.jsonl"))
    with pytest.raises(UserError, match=r"no built-in decisions 'builtin:enn'; there is builtin:en\. Did you mean"):
        path_of("builtin:enn")
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{\n")
    with pytest.raises(FairpruneError, match=r"broken\.jsonl, line 1"):
        read(broken)


def test_words_of_the_file_are_asked(tmp_path: Path) -> None:
    rows = [{**row, "yes": ["granted"], "no": ["refused", "denied"]} for row in lines(1)]
    (question,) = read(file_of(tmp_path, rows)).questions
    assert [word for _, word in question.requests[:3]] == [" granted", " refused", " denied"]
    twice = [{**row, "yes": ["granted", "granted "], "no": ["refused"]} for row in lines(1)]
    (question,) = read(file_of(tmp_path, twice)).questions
    assert [word for _, word in question.requests[:2]] == [" granted", " refused"]
