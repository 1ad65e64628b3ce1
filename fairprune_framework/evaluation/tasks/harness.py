"""lm-eval in process on the model in memory: its tasks, prompts, filters and aggregations; the forward alone is ours.

`SharedContextLM` is lm-eval's HFLM with log-probabilities from `continuations.score`, which computes the context of a question once for
all its choices (BBQ has twelve). Answers equal HFLM's up to the dtype's rounding; the tests hold both against each other.
"""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import nn

from fairprune_framework.errors import FairpruneError, UnknownName, UserError, did_you_mean
from fairprune_framework.evaluation.metrics.continuations import Answer, Request, score
from fairprune_framework.evaluation.tasks.data import LOCAL, SUITES, Items, TaskSettings, drawn, read_items
from fairprune_framework.evaluation.tasks.result import TaskResult
from fairprune_framework.models.quiet import quietly


def language_model(
    model: nn.Module,
    tokenizer: Any,
    micro_batch_tokens: int = 512,
    answering: Callable[[nn.Module, list[Request], int], list[Answer]] = score,
) -> Any:
    """The model as lm-eval wants it.

    Args:
        answering: what answers requests of log-probabilities; another one may count tokens instead, to tell what a task costs.
    """
    from lm_eval.models.huggingface import HFLM

    class SharedContextLM(HFLM):  # type: ignore[misc]
        """HFLM that computes shared contexts once."""

        def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = False, override_bs: int | None = None) -> Any:
            asked = []
            for _, context, continuation in requests:
                whole = (*context, *continuation)[-(self.max_length + 1) :]  # too long: cut from the left, as HFLM does
                asked.append((whole[: -len(continuation)], tuple(continuation)))
            answers = answering(self.model, asked, micro_batch_tokens)
            for (text, _, _), answer in zip(requests, answers, strict=True):
                if text is not None:
                    self.cache_hook.add_partial("loglikelihood", text, answer)
            return answers

    with harness_quietly():
        return SharedContextLM(pretrained=model, tokenizer=tokenizer, batch_size=1, device=str(next(model.parameters()).device))


def check_tasks(tasks: list[str]) -> None:
    """Refuse what lm-eval does not know, before anything runs.

    Raises:
        UnknownName: with the nearest names.
    """
    for task in tasks:
        if task in LOCAL:
            continue
        known = _manager(None).all_tasks
        if task not in known:
            raise UnknownName(
                f"no task {task!r}.{did_you_mean(task, [*SUITES, *known])} Suites: {', '.join(SUITES)}; "
                "tasks are those of `lm-eval ls tasks`"
            )


@cache
def _manager(folder: str | None) -> Any:
    """lm-eval's index of tasks: of one folder, or of all, which takes long."""
    import lm_eval.tasks

    if folder is None:
        return lm_eval.tasks.TaskManager()
    path = Path(lm_eval.tasks.__file__).parent / folder
    return lm_eval.tasks.TaskManager(include_path=str(path), include_defaults=False)


def load_task(settings: TaskSettings) -> tuple[dict[str, Any], Items | None]:
    """lm-eval's task objects by name (a group or tag has several), and the items where the data are local."""
    name = settings.task
    local = LOCAL.get(name)
    manager = _manager(local.folder if local else None)
    if settings.data is None or local is None:
        return manager.load([name])["tasks"], None
    assert local.split is not None  # a task of ours does not come here
    items = read_items(name, settings.data, settings.limit)
    config = {"task": name, "custom_dataset": _of_rows(items, local.split), "dataset_path": None, "dataset_kwargs": None}
    config |= {f"{split}_split": None for split in ("training", "validation") if split != local.split}
    return manager.load([{"group": "local", "task": [config]}])["tasks"], items


def _of_rows(items: Items, split: str) -> Callable[..., Any]:
    def dataset(**_options: Any) -> Any:
        import datasets

        return datasets.DatasetDict({split: datasets.Dataset.from_list([dict(row) for row in items.rows])})

    return dataset


def run_task(lm: Any, settings: TaskSettings) -> list[TaskResult]:
    """Run a task, a group or a tag: one result for each task of it.

    Raises:
        UserError: its data cannot be fetched; the text says what to do.
    """
    from lm_eval.evaluator import evaluate

    with harness_quietly():
        try:
            loaded, items = load_task(settings)
        except Exception as error:  # whatever hub, data set or config raise: the user needs one line of it
            if isinstance(error, FairpruneError):
                raise
            lines = str(error).strip().splitlines() or [type(error).__name__]
            known = LOCAL.get(settings.task)
            where = f" Or put {known.fetch}, into DIR/{known.files[0]} and give --task-data DIR." if known else ""
            raise UserError(
                f"the data of the task {settings.task!r} cannot be fetched: {lines[0].rstrip(' .:')}.{where}"
            ) from error
        chosen = None
        if items is None and settings.limit is not None:
            chosen = {name: drawn([""] * len(task.eval_docs), settings.limit, name) for name, task in loaded.items()}
        results = evaluate(
            lm=lm,
            task_dict={"tasks": loaded, "groups": {}, "group_map": {}},
            samples=chosen,
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=settings.chat_template,
        )
    return [_result(name, task, results, items) for name, task in loaded.items()]


def _result(name: str, task: Any, results: Mapping[str, Any], items: Items | None) -> TaskResult:
    local = LOCAL.get(name)
    aggregations, better = task.aggregation(), task.higher_is_better()
    rows: dict[int, dict[str, Any]] = {}
    used: dict[str, str] = {}
    for sample in results["samples"][name]:
        index, doc = int(sample["doc_id"]), sample["doc"]
        row = rows.setdefault(index, {})
        row["id"] = items.ids[index] if items is not None else index
        row["doc_hash"] = sample["doc_hash"]
        row["category"] = str(doc[local.category]) if local and local.category else None
        row["cluster"] = "/".join(str(doc[key]) for key in local.cluster) if local and local.cluster else str(row["id"])
        if task.OUTPUT_TYPE == "multiple_choice" and isinstance(sample["target"], int):
            row["gold"] = sample["target"]
        for metric in sample["metrics"]:
            key = metric if sample["filter"] == "none" else f"{metric},{sample['filter']}"
            used[key] = metric
            row[key] = _plain(sample[metric])
    measured = results["results"][name]
    metrics = {}
    for key, metric in used.items():
        value = measured.get(key if "," in key else f"{key},none")
        metrics[key] = {
            "value": _plain(value) if isinstance(value, (int, float)) or hasattr(value, "dtype") else None,
            "aggregation": getattr(aggregations.get(metric), "__name__", "unknown"),
            "higher_is_better": better.get(metric),
        }
    ordered = [rows[index] for index in sorted(rows)]
    return TaskResult(
        task=name,
        version=f"{task.VERSION} of lm-eval {metadata.version('lm_eval')}",
        items=tuple(ordered),
        metrics=metrics,
        hash=_hash([[row["id"], row["doc_hash"]] for row in ordered]),
    )


def _hash(value: Any) -> str:
    from fairprune_framework.utilities.files import digest

    return digest(value)


def _plain(value: Any) -> Any:
    """JSON values; NaN and infinity become null."""
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (int, float, str)) or value is None else json.dumps(value, default=str)


@contextmanager
def harness_quietly() -> Iterator[None]:
    """Without the bars, notes and warnings of lm-eval and datasets on stderr."""
    import datasets

    bars = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    level = logging.getLogger().manager.disable
    logging.disable(logging.WARNING)
    try:
        with quietly(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        if bars:
            datasets.enable_progress_bars()
