"""Files of a run that are no JSON, or hold other types than they should: every command that reads them says so in one line, or goes on
without them and says that; nothing is written, nothing is raised."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fairprune_framework.errors import FairpruneError
from fairprune_framework.evaluation.files import EvaluationFile, ExhibitsFile
from fairprune_framework.utilities.answer_schemas import QUESTIONS
from fairprune_framework.utilities.integrity import seal
from fairprune_framework.utilities.schemas import PlanFile, RunRecord, Schema, StatisticsFile, check

Command = Callable[..., Any]
SCHEMAS: dict[str, type[Schema]] = {
    "run.json": RunRecord,
    "statistics.json": StatisticsFile,
    "plan.json": PlanFile,
    "evaluation.json": EvaluationFile,
    "exhibits.json": ExhibitsFile,
    **{f"{name}.json": schema for name, schema in QUESTIONS.items()},
}
READ_BY = (
    ("run.json", "report RUN"),
    ("run.json", "score --output RUN --overwrite"),
    ("run.json", "ask overlap RUN"),
    ("run.json", "inspect RUN --unit 0:1"),
    ("run.json", "restore RUN --output BACK"),
    ("run.json", "export RUN --format hf --output BACK"),
    ("run.json", "push RUN --repo a/b"),
    ("recipe.yaml", "score --output RUN --overwrite"),
    ("recipe.yaml", "ask overlap RUN"),
    ("statistics.json", "score --output RUN --overwrite"),
    ("plan.json", "prune --output RUN --overwrite"),
    ("plan.json", "inspect RUN --unit 0:1"),
    ("scores.safetensors", "plan --output RUN --overwrite"),
    ("restoration.safetensors", "restore RUN --output BACK"),
)
"""(file, a command that cannot do without it)."""
SHOWN = ("plan.json", "exhibits.json", "recipe.yaml", *(f"{name}.json" for name in QUESTIONS))
"""Files that the report goes on without."""
BYTES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda raw: b"",
    "truncated": lambda raw: raw[: len(raw) // 2],
    "a byte order mark": lambda raw: b"\xef\xbb\xbf" + raw,
    "not UTF-8": lambda raw: raw[:40] + b"\xff" + raw[40:],
    "nested deeply": lambda raw: b'{"a":' * 100_000,
    "a list": lambda raw: b"[]",
    "null": lambda raw: b"null",
    "zeros": lambda raw: bytes(100),
    "a key that occurs twice": lambda raw: raw.rstrip()[:-1] + b", " + raw.strip()[1:],
    "an infinite number": lambda raw: raw.rstrip()[:-1] + b', "more": Infinity}',
    "a number of 5,000 digits": lambda raw: raw.rstrip()[:-1] + b', "more": ' + b"9" * 5000 + b"}",
}
"""What is wrong -> the file that has it."""
IN_EVERY_COMMAND = ("truncated", "not UTF-8", "nested deeply")
NOT_IN_YAML = ("a key that occurs twice", "an infinite number", "a number of 5,000 digits", "a byte order mark")
CASES = [
    (name, command, what)
    for index, (name, command) in enumerate(READ_BY)
    for what in BYTES
    if what in IN_EVERY_COMMAND
    or (name not in [known for known, _ in READ_BY[:index]] and not (what in NOT_IN_YAML and "yaml" in name))
]
"""All faults with the first command that reads a file, some with the others."""
VALUES: dict[str, Any] = {
    "null": None,
    "text": "text",
    "true": True,
    "a list": [],
    "a mapping": {"x": 1},
    "texts": ["x"],
    "below 0": -1,
    "a half": 1.5,
    "beyond floats": 10**400,
    "beyond integers": 2**62,
    "nested": json.loads("[" * 60 + "]" * 60),
}


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory, finished: Path, fairprune: Command) -> Path:
    """A finished run that was asked all questions. Read only."""
    run = Path(shutil.copytree(finished, tmp_path_factory.mktemp("answered") / "run"))
    for words in (["overlap"], ["transfer"], ["stability", "--replicates", "2"], ["causal", "--draws", "2"]):
        answer = fairprune("ask", words[0], run, *words[1:])
        assert answer.code == 0, answer.err
    return run


@pytest.fixture
def run(tmp_path: Path, answered: Path) -> Path:
    return Path(shutil.copytree(answered, tmp_path / "run"))


def call(fairprune: Command, command: str, run: Path) -> Any:
    places = {"RUN": run, "BACK": run.parent / "back"}
    return fairprune(*(places.get(word, word) for word in command.split()))


def reseal(run: Path) -> None:
    """Write the hashes of what the files now hold into `run.json`: a stranger's folder, whose hashes are right."""
    record = json.loads((run / "run.json").read_text())
    for stage in record["stages"].values():
        stage["files"] = seal(run, stage["files"])
    (run / "run.json").write_text(json.dumps(record))


def refused(answer: Any) -> str:
    """The one line."""
    assert answer.code == 2, answer.err
    (line,) = answer.errors
    assert len(line) <= 520
    assert answer.out == ""
    return str(line)


@pytest.mark.parametrize(("name", "command", "what"), CASES)
def test_a_file_that_cannot_be_read(
    name: str, command: str, what: str, run: Path, fairprune: Command, snapshot: Command
) -> None:
    (run / name).write_bytes(BYTES[what]((run / name).read_bytes()))
    if name != "run.json":
        reseal(run)
    before = snapshot(run, times=True)
    assert name in refused(call(fairprune, command, run))
    assert snapshot(run, times=True) == before
    assert not (run.parent / "back").exists()


@pytest.mark.parametrize("what", BYTES)
def test_the_report_goes_on_without_what_cannot_be_read(what: str, run: Path, fairprune: Command) -> None:
    names = [name for name in SHOWN if name.endswith("json") or what in ("truncated", "not UTF-8", "zeros", "nested deeply")]
    for name in names:
        (run / name).write_bytes(BYTES[what]((run / name).read_bytes()) if name.endswith("json") else b"\xff")
    reseal(run)
    answer = fairprune("report", run)
    assert answer.code == 0, answer.err
    assert {line.split(": ")[1] for line in answer.errors} == {str(run / name) for name in names}
    assert all(len(line) < 700 for line in answer.errors)


def places(value: Any, path: tuple[Any, ...] = (), depth: int = 4) -> Iterator[tuple[Any, ...]]:
    """Paths to the values in a JSON document, the innermost first; of a list the first entry."""
    entries = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, inner in entries if len(path) < depth else ():
        yield from places(inner, (*path, key), depth)
        yield (*path, key)


def everywhere(data: dict[str, Any], schema: type[Schema], put: Callable[[Any, Any], None]) -> int:
    """Change a document, in place, at every place where it is still what its schema says; how many these are."""
    changed = 0
    for path in places(json.loads(json.dumps(data))):
        if path[0] in ("format", "stages", "inputs", "hashes", "plugin_sources"):
            continue
        other = json.loads(json.dumps(data))
        try:
            holder = other
            for step in path[:-1]:
                holder = holder[step]
            put(holder, path[-1])
            check(other, schema, "it")
        except (FairpruneError, KeyError, IndexError, TypeError):
            continue
        changed += 1
        data.clear()
        data.update(other)
    return changed


def put_value(value: Any) -> Callable[[Any, Any], None]:
    def put(holder: Any, key: Any) -> None:
        if not isinstance(holder[key], (dict, list)) or not holder[key] or isinstance(value, (dict, list)):
            holder[key] = value

    return put


def remove(holder: Any, key: Any) -> None:
    if isinstance(key, str):
        del holder[key]


@pytest.mark.parametrize("what", ["nothing", *VALUES])
def test_what_the_schemas_admit_can_be_shown(what: str, run: Path, fairprune: Command) -> None:
    """Every value in every file replaced at once, as far as the schemas let it: what is read needs no second look."""
    put = remove if what == "nothing" else put_value(VALUES[what])
    for name, schema in SCHEMAS.items():
        data = json.loads((run / name).read_text())
        everywhere(data, schema, put)
        (run / name).write_text(json.dumps(data))
    reseal(run)
    answer = fairprune("report", run)
    assert answer.code == 0, answer.err
    assert all("exhibits.safetensors" in line for line in answer.errors), answer.err  # of contrasts that are gone


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("run.json", {"seeds": {"run": 10**400}}),
        ("run.json", {"contrasts": None}),
        ("run.json", {"removal": {}}),
        ("run.json", {"verdict": "fairer", "verdict_because": None}),
        ("run.json", {"abstained": True}),
    ],
)
def test_a_record_of_other_types(name: str, change: dict[str, Any], run: Path, fairprune: Command) -> None:
    data = json.loads((run / name).read_text())
    (run / name).write_text(json.dumps(data | change))
    assert next(iter(change)) in refused(fairprune("report", run))


# -- places ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    ["score --output RUN --overwrite", "ask overlap RUN", "inspect RUN --unit 0:1", "evaluate --output RUN --overwrite"],
)
def test_a_recipe_that_is_gone(command: str, run: Path, fairprune: Command, snapshot: Command) -> None:
    (run / "recipe.yaml").unlink()
    before = snapshot(run, times=True)
    assert str(run / "recipe.yaml") in refused(call(fairprune, command, run))
    assert snapshot(run, times=True) == before


@pytest.mark.parametrize("name", ["run.json", "recipe.yaml", "plan.json", "scores.safetensors", "statistics.json"])
def test_a_folder_in_place_of_a_file(name: str, run: Path, fairprune: Command, snapshot: Command) -> None:
    (run / name).unlink()
    (run / name).mkdir()
    before = snapshot(run, times=True)
    for command in ("score --output RUN --overwrite", "plan --output RUN --overwrite", "prune --output RUN --overwrite"):
        if name in ("run.json", "recipe.yaml") or command.startswith(
            {"p": "prune", "sc": "plan", "st": "score"}[name[: 1 + (name[0] == "s")]]
        ):
            assert name in refused(call(fairprune, command, run))
            assert snapshot(run, times=True) == before


def test_a_file_in_place_of_the_run(run: Path, fairprune: Command) -> None:
    shutil.rmtree(run)
    run.write_text("a file")
    for command in (
        "report RUN",
        "score --output RUN",
        "ask overlap RUN",
        "restore RUN --output BACK",
        "inspect RUN --unit 0:1",
    ):
        assert str(run) in refused(call(fairprune, command, run))
    assert run.read_text() == "a file"


@pytest.mark.parametrize("name", ["model", "cache"])
def test_a_file_in_place_of_a_folder(name: str, run: Path, fairprune: Command) -> None:
    """The stage that makes the folder replaces it, or says what is in its way."""
    if (run / name).is_dir():
        shutil.rmtree(run / name)
    (run / name).write_text("a file")
    answer = fairprune("prune", "--output", run, "--overwrite")
    assert answer.code == 0, answer.err
    answer = fairprune("report", run)
    assert answer.code == 0, answer.err


def test_from_another_directory(run: Path, fairprune: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run is named from anywhere, by a relative path or through a link; what its recipe names lies where it lay."""
    (run.parent / "elsewhere").mkdir()
    os.symlink(run, run.parent / "elsewhere" / "link")
    monkeypatch.chdir(run.parent / "elsewhere")
    for name in ("../run", "link", "link/../run"):
        for words in (["score", "--output", name], ["ask", "overlap", name], ["report", name]):
            answer = fairprune(*words)
            assert answer.code == 0, answer.err
    assert not any(path.name.startswith(".") for path in run.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
def test_a_folder_that_may_not_be_written(run: Path, fairprune: Command) -> None:
    run.chmod(0o555)
    try:
        answer = fairprune("score", "--output", run, "--overwrite")
    finally:
        run.chmod(0o755)
    assert answer.code in (1, 2), answer.err
    assert len(answer.errors) == 1
