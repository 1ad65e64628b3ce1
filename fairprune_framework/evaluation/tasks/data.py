"""Named suites of lm-eval tasks, where each task's local data lie, and which of its items are used.

A task runs on the data that lm-eval names, or with `--task-data DIR` on local files in the layout below. Whatever the source, the items
of a limited run are drawn once by seed 0 and stored by their ids: everything that is compared is compared on the same items.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairprune_framework.contrasts import formats
from fairprune_framework.errors import UnknownName, UserError, did_you_mean

SUITES: Mapping[str, tuple[str, ...]] = {
    "capability": ("lambada_openai", "boolq", "wikitext"),
    "bias": ("crows_pairs_english", "bbq", "winogender_all"),
}
"""`--suite NAME`."""
ALIASES: Mapping[str, str] = {"winogender": "winogender_all"}
"""Tags of lm-eval that we take for one of their tasks."""
ITEM_SEED = 0
"""Of the subset of items. No option: a record is comparable only with others on the same items."""


@dataclass(frozen=True, kw_only=True)
class LocalTask:
    """Where `--task-data` looks for a task, and what its items are called."""

    folder: str
    """Of lm-eval's task configs, below `lm_eval/tasks`: reading only these spares its index of 14,000 others. Of our own tasks: of the
    data, below DIR."""
    files: tuple[str, ...]
    """Patterns below DIR."""
    split: str | None
    """The split that lm-eval judges on; None: the task is ours, and has no other source than local files."""
    fetch: str
    """Where the data come from, for the error where they are absent."""
    fields: tuple[str, ...] = ()
    """What every item must have; empty: the task has a reader of its own."""
    strata: tuple[str, ...] = ()
    """Fields of an item: a limit holds for each combination of their values."""
    category: str | None = None
    """Field of an item that names its category."""
    cluster: tuple[str, ...] = ()
    """Fields that items from one template share; empty: every item stands alone."""


LOCAL: Mapping[str, LocalTask] = {
    "lambada_openai": LocalTask(
        folder="lambada",
        files=("lambada/*.jsonl",),
        split="test",
        fetch="the hub data set EleutherAI/lambada_openai, one {text} a line",
        fields=("text",),
    ),
    "boolq": LocalTask(
        folder="super_glue/boolq",
        files=("boolq/*.jsonl",),
        split="validation",
        fetch="the hub data set aps/super_glue, boolq, split validation, one {question, passage, label} a line",
        fields=("question", "passage", "label"),
    ),
    "wikitext": LocalTask(
        folder="wikitext",
        files=("wikitext2/test_docs.jsonl",),
        split="test",
        fetch="the hub data set EleutherAI/wikitext_document_level, wikitext-2-raw-v1, split test, one {page} a line",
        fields=("page",),
    ),
    "crows_pairs_english": LocalTask(
        folder="crows_pairs",
        files=("crows_pairs/*.csv",),
        split="test",
        fetch="crows_pairs_anonymized.csv of github.com/nyu-mll/crows-pairs",
        fields=("sent_more", "sent_less", "stereo_antistereo", "bias_type"),
        category="bias_type",
    ),
    "bbq": LocalTask(
        folder="bbq",
        files=("bbq/*.jsonl",),
        split="test",
        fetch="data/*.jsonl of github.com/nyu-mll/BBQ, any categories",
        fields=("context", "question", "ans0", "ans1", "ans2", "label", "answer_info", "category", "context_condition"),
        strata=("category", "context_condition"),
        category="category",
        cluster=("category", "question_index"),
    ),
    "winogender_all": LocalTask(
        folder="winogender",
        files=("winogender/*.jsonl",),
        split="test",
        fetch="the hub data set oskarvanderwal/winogender, all, one {sentence, pronoun, occupation, participant, label, gender} a line",
        fields=("sentence", "pronoun", "occupation", "participant", "label", "gender"),
        category="gender",
        cluster=("occupation", "participant"),
    ),
    "winobias": LocalTask(
        folder="winobias",
        files=("winobias/*_stereotyped_type*.txt.*",),
        split=None,
        fetch="WinoBias/wino/data/*_stereotyped_*.txt.* of github.com/uclanlp/corefBias",
    ),
    "stereoset": LocalTask(
        folder="stereoset",
        files=("stereoset/*.json", "stereoset/*.jsonl"),
        split=None,
        fetch="data/dev.json of github.com/moinnadeem/StereoSet",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Items:
    """The rows of a task that are used."""

    rows: tuple[Mapping[str, Any], ...]
    ids: tuple[int, ...]
    """Places in the whole set, counted from 0; ascending."""
    sha256: str
    """Of the files."""


def tasks_of(names: str | Sequence[str]) -> list[str]:
    """Task names of suites and tasks, as `capability,bbq`, each once and in order.

    >>> tasks_of("capability,bbq")
    ['lambada_openai', 'boolq', 'wikitext', 'bbq']
    """
    words = names.split(",") if isinstance(names, str) else [part for name in names for part in name.split(",")]
    tasks: list[str] = []
    for word in (word.strip() for word in words):
        tasks += SUITES.get(word, (ALIASES.get(word, word),))
    return [name for name in dict.fromkeys(tasks) if name]


def limits_of(text: str | int | None, tasks: Sequence[str]) -> dict[str, int | None]:
    """Items of each task, of `400` or `lambada_openai=1000,bbq=100`; None: all.

    >>> limits_of("boolq=400", ["boolq", "bbq"])
    {'boolq': 400, 'bbq': None}

    Raises:
        UserError: no number, or a task that does not run.
    """
    counts: dict[str, int | None] = dict.fromkeys(tasks)
    if text is None or text == "":
        return counts
    for part in str(text).split(","):
        name, equals, count = part.strip().rpartition("=")
        if re.fullmatch(r"\d{1,18}", count) is None or int(count) < 1:
            raise UserError(f"--task-limit must be a number such as 400, or TASK=400,TASK=100. Got {text!r} instead.")
        name = ALIASES.get(name, name)
        if equals and name not in counts:
            raise UnknownName(f"--task-limit names {name!r}, which does not run.{did_you_mean(name, counts)}")
        counts.update(dict.fromkeys([name] if equals else tasks, int(count)))
    return counts


def check_data(tasks: Sequence[str], folder: Path | None) -> None:
    """Say what is missing before anything runs.

    Raises:
        UserError: no folder, a task whose files are absent or lack a field, one that has no local layout, or one that has nothing else.
    """
    if folder is None:
        for task in tasks:
            if task in LOCAL and LOCAL[task].split is None:
                raise UserError(
                    f"the task {task!r} needs --task-data DIR: put {LOCAL[task].fetch}, into DIR/{LOCAL[task].folder}"
                )
        return
    if not folder.is_dir():
        raise UserError(f"--task-data: there is no folder {folder}")
    for task in tasks:
        local = LOCAL.get(task)
        if local is None:
            raise UserError(
                f"--task-data knows no layout for the task {task!r}, only for {', '.join(LOCAL)}; without --task-data lm-eval fetches it"
            )
        if not files_of(local, folder):
            raise UserError(
                f"the data of the task {task!r} are absent: put {local.fetch}, into {folder / local.files[0]}; "
                "without --task-data lm-eval fetches them from the hub"
            )
        if local.fields:
            _rows_of(local, folder)


def files_of(local: LocalTask, folder: Path) -> list[Path]:
    """The files of a task, sorted by name."""
    return sorted(path for pattern in local.files for path in folder.glob(pattern))


def place_of(task: str, folder: Path) -> Path:
    """Where the data of a task of ours lie."""
    return folder / LOCAL[task].folder if task in LOCAL else folder


def read_items(task: str, folder: Path, limit: int | None) -> Items:
    """The items of a task from local files; a limit draws that many of each stratum.

    Raises:
        PromptError: a file that cannot be read.
        UserError: an item lacks a field.
    """
    local = LOCAL[task]
    rows = _rows_of(local, folder)
    digest = hashlib.sha256()
    for path in files_of(local, folder):
        digest.update(path.read_bytes())
    chosen = drawn([tuple(str(row[name]) for name in local.strata) for row in rows], limit, task)
    return Items(rows=tuple(rows[i] for i in chosen), ids=tuple(chosen), sha256=digest.hexdigest())


def _rows_of(local: LocalTask, folder: Path) -> list[Mapping[str, Any]]:
    """The items of all files of a task, each with its fields."""
    found: list[Mapping[str, Any]] = []
    for path in files_of(local, folder):
        for row in formats.rows(path):
            if row.problem is not None:
                raise UserError(f"{row.where}: {row.problem}")
            if missing := [name for name in local.fields if name not in row.data]:
                raise UserError(f"{row.where}: the field {missing[0]!r} is missing, one of {', '.join(local.fields)}")
            found.append(row.data)
    return found


def drawn(strata: Sequence[object], limit: int | None, task: str) -> list[int]:
    """Indices of the items to use, ascending: of each stratum the `limit` with the lowest hashes of (seed, task, index)."""
    groups: dict[object, list[int]] = {}
    for index, stratum in enumerate(strata):
        groups.setdefault(stratum, []).append(index)

    def draw(index: int) -> bytes:
        return hashlib.sha256(f"{ITEM_SEED}/{task}/{index}".encode()).digest()

    return sorted(index for group in groups.values() for index in sorted(group, key=draw)[:limit])


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """What the result of a task depends on, beside the model."""

    task: str
    limit: int | None = None
    data: Path | None = None
    chat_template: bool = False
    micro_batch_tokens: int = 512
