"""lm-eval in process against lm-eval itself, on invented items: the same numbers, the same items, results that are kept."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from fairprune_framework.errors import UnknownName, UserError
from fairprune_framework.evaluation.cache import MeasurementCache
from fairprune_framework.evaluation.subject import Subject
from fairprune_framework.evaluation.tasks.data import LOCAL, TaskSettings, read_items
from fairprune_framework.evaluation.tasks.derived import with_derived
from fairprune_framework.evaluation.tasks.harness import (
    _manager,
    check_tasks,
    harness_quietly,
    language_model,
    run_task,
)
from fairprune_framework.evaluation.tasks.rows import task_rows
from fairprune_framework.models.architecture import recognise
from fairprune_framework.testing.tiny import tiny_model, tiny_tokenizer


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


@pytest.mark.parametrize("task", [name for name in LOCAL if name != "boolq" and LOCAL[name].split is not None])
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
    derived = {f"{task}/{name}" for name in with_derived(found).metrics.keys() - found.metrics.keys()}
    for name, row in rows.items():  # our statistic of sums is lm-eval's aggregation
        if name in derived:
            continue
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


def test_unknown_tasks_are_named(monkeypatch: Any) -> None:
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


# -- cache -----------------------------------------------------------------------------------------------------------------


def test_results_are_kept_and_belong_to_one_model(data: Path, tmp_path: Path) -> None:
    said: list[str] = []
    model = tiny_model("llama").eval()

    def made(**options: Any) -> Subject:
        cache = MeasurementCache(tmp_path / "measurements")
        return Subject(model, tiny_tokenizer(), recognise(model), cache, notify=said.append, **options)

    first = made().task(settings("boolq", data))
    assert said == ["measuring boolq"]
    assert made().task(settings("boolq", data)) == first
    assert len(said) == 1
    site = next(iter(made().architecture.sites))
    masked: Mapping[str, list[int]] = {site: [0, 1]}
    made(units=masked).task(settings("boolq", data))
    made(units={site: []}).task(settings("boolq", data))  # masks nothing: the same model
    assert len(said) == 2
    (tmp_path / "measurements" / sorted(path.name for path in (tmp_path / "measurements").iterdir())[0]).write_text("{")
    broken = len(said)
    made().task(settings("boolq", data))
    made(units=masked).task(settings("boolq", data))
    assert len(said) == broken + 1
