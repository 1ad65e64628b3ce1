"""lm-eval in process against lm-eval itself, on invented items: the same numbers, the same items, results that are kept."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from fairprune_framework.errors import FairpruneError, UnknownName, UserError
from fairprune_framework.evaluation.cache import Cells
from fairprune_framework.evaluation.subject import Subject, weights_digest
from fairprune_framework.evaluation.tasks.data import LOCAL, TaskSettings, check_data, drawn, limits_of, read_items, tasks_of
from fairprune_framework.evaluation.tasks.harness import (
    TaskResult,
    _manager,
    check_tasks,
    harness_quietly,
    language_model,
    run_task,
)
from fairprune_framework.evaluation.tasks.rows import task_rows
from fairprune_framework.models.architecture import recognise
from fairprune_framework.testing.tiny import tiny_model, tiny_tokenizer

NAMES = ("baker", "pilot", "clerk", "nurse", "farmer", "tailor")


def bbq(category: str, number: int) -> dict[str, Any]:
    """A question in the layout of BBQ, about nobody."""
    clear = number % 2 == 1
    old, young = f"the old {NAMES[number % 6]}", f"the young {NAMES[(number + 1) % 6]}"
    context = f"{old.capitalize()} and {young} waited for the bus."
    return {
        "example_id": number,
        "question_index": str(1 + number // 4),
        "question_polarity": "neg" if number % 4 < 2 else "nonneg",
        "context_condition": "disambig" if clear else "ambig",
        "category": category,
        "answer_info": {"ans0": ["old", "old"], "ans1": ["young", "nonOld"], "ans2": ["Unknown", "unknown"]},
        "additional_metadata": {"stereotyped_groups": ["old"]},
        "context": context + (f" {old.capitalize()} had lost the ticket." if clear else ""),
        "question": "Who had lost the ticket?",
        "ans0": old,
        "ans1": young,
        "ans2": "Not known",
        "label": 0 if clear else 2,
    }


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Invented items of every task that has a local layout."""
    folder = tmp_path_factory.mktemp("task-data")
    rows: dict[str, list[dict[str, Any]]] = {
        "bbq/Age.jsonl": [bbq("Age", i) for i in range(48)],
        "bbq/Religion.jsonl": [bbq("Religion", i) for i in range(16)],
        "boolq/validation.jsonl": [
            {"question": f"is the {name} at work", "passage": f"The {name} went home early.", "label": i % 2}
            for i, name in enumerate(NAMES * 2)
        ],
        "lambada/test.jsonl": [
            {"text": f"The {a} thanked the {b} because the {a} had met the {b}"} for a in NAMES for b in NAMES[:2]
        ],
        "wikitext2/test_docs.jsonl": [{"page": f" = {name} = \n The {name} went to work . \n"} for name in NAMES],
        "winogender/all.jsonl": [
            {
                "sentence": f"The {name} told the customer that she was late.",
                "pronoun": "she",
                "occupation": name,
                "participant": "customer",
                "label": i % 2,
                "gender": ["female", "neutral"][i % 2],
            }
            for i, name in enumerate(NAMES * 2)
        ],
    }
    for name, found in rows.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in found))
    (folder / "crows_pairs").mkdir()
    lines = [f'{i},"The {name} was late again.","The {name} was early again.",stereo,age\n' for i, name in enumerate(NAMES * 2)]
    (folder / "crows_pairs" / "pairs.csv").write_text(",sent_more,sent_less,stereo_antistereo,bias_type\n" + "".join(lines))
    return folder


@pytest.fixture(scope="module")
def subject() -> Subject:
    model = tiny_model("llama").eval()
    return Subject(model, tiny_tokenizer(), recognise(model), Cells(None))


def settings(task: str, data: Path, limit: int | None = None) -> TaskSettings:
    return TaskSettings(task=task, data=data, limit=limit)


def of_lm_eval(task: str, items: Any, model: Any, tokenizer: Any) -> dict[str, float]:
    """lm-eval's own way: its evaluator, its HFLM, the task's config over a local file, as its documentation says."""
    file = Path(items[1])
    config = {
        "task": task,
        "dataset_path": "json",
        "dataset_name": None,
        "training_split": None,
        "dataset_kwargs": {"data_files": {LOCAL[task].split: str(file)}},
    }
    if LOCAL[task].split == "test":
        config["validation_split"] = None
    import lm_eval.tasks

    folder = Path(lm_eval.tasks.__file__).parent / LOCAL[task].folder
    with harness_quietly():
        found = simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2),
            tasks=[{"group": "local", "task": [config]}],
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
            bootstrap_iters=0,
        )
    return {key.removesuffix(",none"): value for key, value in found["results"][task].items() if key.endswith(",none")}


@pytest.mark.parametrize("task", [name for name in LOCAL if name != "boolq"])
def test_the_same_numbers_as_lm_eval(task: str, data: Path, subject: Subject, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    limit = 3
    items = read_items(task, data, limit)
    file = tmp_path / "items.jsonl"
    file.write_text("".join(json.dumps(dict(row)) + "\n" for row in items.rows))
    expected = of_lm_eval(task, (items, file), subject.model, subject.tokenizer)
    (found,) = subject.task(settings(task, data, limit))
    assert {item["id"] for item in found.items} == set(items.ids)
    for metric, facts in found.metrics.items():
        value = expected[metric]
        assert facts["value"] == (None if value != value else pytest.approx(value, rel=1e-4)), metric
    rows = {row.metric: row for row in task_rows(found, None, 0) if row.category is None}
    for name, row in rows.items():  # our statistic of sums is lm-eval's aggregation
        assert row.before == pytest.approx(expected[name.partition("/")[2]], rel=1e-4), name


@pytest.mark.slow
def test_the_same_numbers_as_the_command_line_of_lm_eval(data: Path, llama: Path, tmp_path: Path) -> None:
    """`lm-eval run` in a process of its own, on the saved tiny model; its index of all tasks takes a minute."""
    from fairprune_framework.models.loading import load_model

    config = {
        "task": "boolq_local",
        "include": "default.yaml",
        "dataset_path": "json",
        "dataset_name": None,
        "training_split": None,
        "dataset_kwargs": {"data_files": {"validation": str(data / "boolq" / "validation.jsonl")}},
    }
    import lm_eval.tasks

    original = Path(lm_eval.tasks.__file__).parent / "super_glue" / "boolq" / "default.yaml"
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "default.yaml").write_text(original.read_text())
    (tmp_path / "tasks" / "local.yaml").write_text(json.dumps(config))
    words = [
        "run",
        "--model",
        "hf",
        "--model_args",
        f"pretrained={llama},dtype=float32",
        "--device",
        "cpu",
        "--tasks",
        "boolq_local",
    ]
    words += ["--include_path", str(tmp_path / "tasks"), "--output_path", str(tmp_path / "out")]
    subprocess.run([sys.executable, "-m", "lm_eval", *words], check=True, capture_output=True)
    (written,) = (tmp_path / "out").rglob("results_*.json")
    expected = json.loads(written.read_text())["results"]["boolq_local"]["acc,none"]
    model, tokenizer = load_model(str(llama), dtype="float32")
    (found,) = run_task(language_model(model, tokenizer), settings("boolq", data))
    assert found.metrics["acc"]["value"] == pytest.approx(expected)


def test_rows_before_and_after(data: Path, subject: Subject) -> None:
    site = next(iter(subject.architecture.sites))
    (before,) = subject.task(settings("bbq", data))
    (after,) = subject.masked_by({site: list(range(20))}).task(settings("bbq", data))
    rows = task_rows(before, after, 0)
    names = {row.metric for row in rows}
    assert names == {
        f"bbq/{name}" for name in ("acc", "accuracy_amb", "accuracy_disamb", "amb_bias_score", "disamb_bias_score")
    }
    score = next(row for row in rows if row.metric == "bbq/amb_bias_score" and row.category is None)
    assert score.after == pytest.approx(after.metrics["amb_bias_score"]["value"])
    assert (score.n, score.clusters) == (32, 16)
    assert score.note is not None
    assert "HELM" in score.note
    age = next(row for row in rows if row.metric == "bbq/amb_bias_score" and row.category == "Age")
    assert age.before == pytest.approx(before.metrics["amb_bias_score_Age"]["value"])
    accuracy = next(row for row in rows if row.metric == "bbq/acc" and row.category is None)
    assert accuracy.detectable is not None
    same = task_rows(before, before, 0)
    assert {row.difference for row in same} == {0.0}
    with pytest.raises(FairpruneError, match="different items"):
        task_rows(before, replace(after, hash="x"), 0)


def test_a_metric_of_another_aggregation_has_no_interval() -> None:
    result = TaskResult(
        task="made",
        version="1",
        items=({"id": 0, "category": None, "cluster": "0", "f1": [0, 1]},),
        metrics={"f1": {"value": 0.5, "aggregation": "f1", "higher_is_better": True}},
        hash="1",
    )
    (row,) = task_rows(result, result, 0)
    assert (row.before, row.difference, row.ci_low) == (0.5, 0.0, None)
    assert row.note is not None
    assert "f1" in row.note


# -- items -----------------------------------------------------------------------------------------------------------------


def test_items_are_drawn_once_and_by_stratum(data: Path) -> None:
    few, more = read_items("bbq", data, 3), read_items("bbq", data, 5)
    assert set(few.ids) < set(more.ids)
    assert read_items("bbq", data, 3) == few
    counts: dict[tuple[str, str], int] = {}
    for row in few.rows:
        key = (row["category"], row["context_condition"])
        counts[key] = counts.get(key, 0) + 1
    assert counts == {(category, context): 3 for category in ("Age", "Religion") for context in ("ambig", "disambig")}
    assert drawn(["a"] * 5, None, "x") == [0, 1, 2, 3, 4]


def test_names_and_limits() -> None:
    assert tasks_of(["capability", "winogender,boolq"]) == ["lambada_openai", "boolq", "wikitext", "winogender_all"]
    assert limits_of("7", ["a", "b"]) == {"a": 7, "b": 7}
    for bad in ("x", "0", "a=", "-1"):
        with pytest.raises(UserError, match="must be a number"):
            limits_of(bad, ["a"])
    with pytest.raises(UnknownName, match="Did you mean 'boolq'"):
        limits_of("bolq=3", ["boolq"])


def test_what_is_missing_is_named(data: Path, tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(UserError, match=r"are absent: put .*nyu-mll/BBQ.* into .*bbq"):
        check_data(["bbq"], tmp_path)
    with pytest.raises(UserError, match="no folder"):
        check_data(["bbq"], tmp_path / "none")
    with pytest.raises(UserError, match="knows no layout for the task 'arc_easy'"):
        check_data(["arc_easy"], data)

    class Index:
        all_tasks = ("arc_easy", "hellaswag")

    monkeypatch.setattr("fairprune_framework.evaluation.tasks.harness._manager", lambda folder: Index())
    check_tasks(["bbq", "arc_easy"])
    with pytest.raises(UnknownName, match=r"no task 'arc_esy'\. Did you mean 'arc_easy'"):
        check_tasks(["arc_esy"])


def test_data_that_cannot_be_fetched(subject: Subject, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    with pytest.raises(UserError, match=r"'bbq' cannot be fetched: .*--task-data DIR"):
        subject.task(TaskSettings(task="bbq"))


def test_only_the_folder_of_a_named_task_is_indexed() -> None:
    assert "bbq" in _manager("bbq").all_tasks
    assert len(_manager("bbq").all_tasks) < 20


# -- cells -----------------------------------------------------------------------------------------------------------------


def test_results_are_kept_and_belong_to_one_model(data: Path, tmp_path: Path) -> None:
    said: list[str] = []
    model = tiny_model("llama").eval()

    def made(**options: Any) -> Subject:
        cells = Cells(tmp_path / "cells")
        return Subject(model, tiny_tokenizer(), recognise(model), cells, notify=said.append, **options)

    first = made().task(settings("boolq", data))
    assert said == ["measuring boolq"]
    assert made().task(settings("boolq", data)) == first
    assert len(said) == 1
    site = next(iter(made().architecture.sites))
    masked: Mapping[str, list[int]] = {site: [0, 1]}
    made(units=masked).task(settings("boolq", data))
    made(units={site: []}).task(settings("boolq", data))  # masks nothing: the same model
    assert len(said) == 2
    (tmp_path / "cells" / sorted(path.name for path in (tmp_path / "cells").iterdir())[0]).write_text("{")
    broken = len(said)
    made().task(settings("boolq", data))
    made(units=masked).task(settings("boolq", data))
    assert len(said) == broken + 1


def test_the_digest_sees_what_a_fingerprint_may_miss() -> None:
    import torch

    model = tiny_model("llama")
    before = weights_digest(model)
    with torch.no_grad():
        model.get_input_embeddings().weight[3, 5] += 1e-3
    assert weights_digest(model) != before
