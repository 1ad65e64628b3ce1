"""JSON headers of safetensors files that hold other types than they should, under right hashes: one line and exit 2 in every command that
reads them; a checkpoint that holds them is passed over in one line, and the audit comes to the same result."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fairprune_framework.auditing.distributed.checkpoint import Checkpoint, _checksum
from fairprune_framework.auditing.distributed.checkpoint_callback import CheckpointCallback
from fairprune_framework.errors import FairpruneError, UserError
from fairprune_framework.models.loading import load_model
from fairprune_framework.surgery import restoration as kept
from fairprune_framework.surgery import undoing
from fairprune_framework.utilities.integrity import seal

Command = Callable[..., Any]
Steps = tuple[str | int, ...]
VALUES: dict[str, str] = {
    "null": "null",
    "true": "true",
    "a text": '"text"',
    "an empty text": '""',
    "half a character": '"\\ud800"',
    "an empty list": "[]",
    "an empty mapping": "{}",
    "nested lists": "[" * 40 + "]" * 40,
    "below 0": "-1",
    "a half": "1.5",
    "beyond 32 bits": str(2**40),
    "beyond 64 bits": str(2**64),
    "beyond floats": "9" * 400,
    "more digits than Python reads": "9" * 5000,
    "NaN": "NaN",
    "infinite": "-Infinity",
}
"""What stands in place of a field -> JSON."""
PLACEHOLDER = "@@@@"


def places(value: Any, path: Steps = ()) -> Iterator[Steps]:
    """Paths to every field of a JSON document; of a list to its first entry."""
    if path:
        yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*path, 0))


def name_of(path: Steps) -> str:
    return ".".join(str(step) for step in path)


def changed(data: Any, path: Steps, value: str | None) -> str:
    """The document as text with a field replaced by other JSON; None: without the field."""
    data = json.loads(json.dumps(data))
    holder = data
    for step in path[:-1]:
        holder = holder[step]
    if value is None:
        del holder[path[-1]]
    else:
        holder[path[-1]] = PLACEHOLDER
    return json.dumps(data).replace(f'"{PLACEHOLDER}"', value or "")


def doubled(data: Any, path: Steps) -> str:
    """The document as text with a field that stands twice in its mapping."""
    data = json.loads(json.dumps(data))
    holder = data
    for step in path[:-1]:
        holder = holder[step]
    value = json.dumps(holder[path[-1]])
    holder[path[-1]] = PLACEHOLDER
    return json.dumps(data).replace(f'"{PLACEHOLDER}"', f"{value}, {json.dumps(path[-1])}: {value}")


def variants(data: Any, path: Steps) -> Iterator[tuple[str, str]]:
    """(what is wrong, the document as text) of one field."""
    stands = data
    for step in path:
        stands = stands[step]
    for what, value in VALUES.items():
        if value != json.dumps(stands):
            yield what, changed(data, path, value)
    yield "absent", changed(data, path, None)
    if isinstance(path[-1], str):
        yield "twice", doubled(data, path)


# -- restorations ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def header(finished: Path) -> dict[str, Any]:
    with safe_open(finished / kept.FILE, framework="pt") as file:
        found: dict[str, Any] = json.loads(file.metadata()["fairprune"])
    return found


def write_restoration(finished: Path, path: Path, text: str) -> Path:
    save_file(load_file(finished / kept.FILE), path, metadata={"format": kept.FORMAT, "fairprune": text})
    return path


FREE = ("plan.model", "plan.requested", "plan.achieved", "plan.reason", "plan.category_names", "plan.abstained")
"""Words for people, which nothing is computed from: other ones of the same type are taken."""
OPTIONAL = (*FREE, "added", "plan.factor", "plan.factors", "plan.means", "plan.categories", "exact", "round_to")
"""Fields that may be absent or have another value without a change of the weights that come back, which are compared bit by bit."""


def test_every_field_of_a_restoration(finished: Path, header: dict[str, Any], tmp_path: Path) -> None:
    """A wrong value is refused in one line when it is read, or the model that comes back is, bit by bit, the original."""
    path, wrong, taken = tmp_path / kept.FILE, [], set()
    for field in places(header):
        for what, text in variants(header, field):
            try:
                found = kept.load(write_restoration(finished, path, text))
            except UserError as error:
                if len(str(error).replace(str(path), "")) > 480 or "\n" in str(error):
                    wrong.append(f"{name_of(field)}, {what}: a message of {len(str(error))} characters")
                continue
            taken.add(name_of(field))
            model, _ = load_model(str(finished / "model"))
            try:
                undoing.restore_in_place(model, found)
            except FairpruneError:
                continue
            if not name_of(field).startswith(OPTIONAL):
                wrong.append(f"{name_of(field)}, {what}: taken")
    assert not wrong, "\n".join(wrong)
    assert taken  # the walk reached fields that may be absent


FIELDS = ("plan", "exact", "round_to", "weights", "pruned", "config", "added", "units", "parameters")


@pytest.mark.parametrize("what", ["null", "half a character", "beyond floats", "NaN", "nested lists", "twice"])
@pytest.mark.parametrize("field", FIELDS)
def test_restore_names_what_is_wrong(
    field: str, what: str, finished: Path, header: dict[str, Any], tmp_path: Path, fairprune: Command
) -> None:
    text = dict(variants(header, (field,)))[what]
    path = write_restoration(finished, tmp_path / "other.safetensors", text)
    answer = fairprune("restore", finished, "--restoration", path, "--output", tmp_path / "back")
    assert answer.code == 2, answer.err
    (line,) = answer.errors
    assert f"{path} is damaged" in line
    assert len(line) <= 520
    assert not (tmp_path / "back").exists()


def test_all_fields_are_tried(header: dict[str, Any]) -> None:
    assert set(FIELDS) == set(header)


# -- checkpoints -----------------------------------------------------------------------------------------------------------

AUDIT = ("--recipe", "relative-variance", "--checkpoint-every", "1", "--micro-batch-tokens", "16")


class Stopped(FairpruneError):
    """Ends an audit after some micro-batches."""


@pytest.fixture(scope="module")
def audits(
    tmp_path_factory: pytest.TempPathFactory, llama: Path, prompts: Path, fairprune: Command
) -> tuple[Path, dict[str, bytes]]:
    """A run whose audit was stopped after some checkpoints, and the results of one that was not. Read only."""
    folder = tmp_path_factory.mktemp("audits")
    words = ("audit", llama, "--prompts", prompts, *AUDIT)
    assert fairprune(*words, "--output", folder / "whole").code == 0
    usual, seen = CheckpointCallback.on_predict_batch_end, 0

    def stopped(self: Any, *words: Any, **named: Any) -> None:
        nonlocal seen
        usual(self, *words, **named)
        seen += 1
        if seen == 3:
            raise Stopped("enough")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointCallback, "on_predict_batch_end", stopped)
        assert fairprune(*words, "--output", folder / "stopped").code == 1
    results = {name: (folder / "whole" / name).read_bytes() for name in ("statistics.json", "statistics.safetensors")}
    return folder / "stopped", results


def rewritten(run: Path, text: str) -> None:
    """Give every checkpoint another header, with the right checksum where it can be read at all."""
    for path in (run / "checkpoint").glob("*.safetensors"):
        words = load_file(path)
        try:
            checksum = _checksum(json.loads(text), words)
        except (ValueError, RecursionError):
            checksum = "0" * 64
        save_file(words, path, metadata={"header": text, "sha256": checksum})


def header_of(run: Path) -> dict[str, Any]:
    with safe_open(next((run / "checkpoint").glob("rank-*")), framework="pt") as file:
        found: dict[str, Any] = json.loads(file.metadata()["header"])
    return found


UNREAD = ("counts.controls", "counts.legitimate", "counts.calibration", "binding.calibration text")
"""Of streams that the audit does not read: they may be absent."""


def test_every_field_of_a_checkpoint(audits: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    """Wrong values are said in one line and not used, or refused. A number of the right kind under the right checksum is taken."""
    run, wrong = Path(shutil.copytree(audits[0], tmp_path / "run")), []
    head = header_of(run)
    for field in places(head):
        for what, text in variants(head, field):
            shutil.rmtree(run / "checkpoint")
            shutil.copytree(audits[0] / "checkpoint", run / "checkpoint")
            rewritten(run, text)
            heard: list[str] = []
            try:
                found = Checkpoint(run / "checkpoint", head["binding"], heard.append).load()
            except UserError as error:
                heard.append(str(error))
            else:
                unread = name_of(field).startswith(UNREAD) and what in ("absent", "an empty list", "an empty mapping")
                if found.done.bits and not unread and what != "beyond 32 bits":
                    wrong.append(f"{name_of(field)}, {what}: taken")
                if not found.done.bits and not heard and not name_of(field).startswith("done.windows"):
                    wrong.append(f"{name_of(field)}, {what}: not said")
            wrong += [f"{name_of(field)}, {what}: {line}" for line in heard if len(line) > 700 or "\n" in line]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("field", "what"),
    [
        (None, ""),
        ("format", "a text"),
        ("binding", "an empty mapping"),
        ("counts", "an empty mapping"),
        ("done.windows.0.3", "beyond 32 bits"),
        ("splits", "beyond floats"),
        ("done.contrasts", "beyond 32 bits"),
    ],
)
def test_an_audit_beside_a_checkpoint_that_is_wrong(
    field: str | None, what: str, audits: tuple[Path, dict[str, bytes]], tmp_path: Path, fairprune: Command
) -> None:
    """It ends with the same sums, or in one line and exit 2; then `--overwrite` does it."""
    stopped, results = audits
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    if field is not None:
        steps = tuple(int(step) if step.isdigit() else step for step in field.split("."))
        rewritten(run, dict(variants(header_of(run), steps))[what])
    answer = fairprune("audit", "--output", run)
    assert answer.code == (2 if field in ("format", "binding", "done.windows.0.3") else 0), answer.err
    assert len(answer.errors) == (answer.code == 2), answer.err
    if answer.code == 2:
        assert len(answer.errors[0]) <= 520
        if "remove it" in answer.err:
            shutil.rmtree(run / "checkpoint")
        assert fairprune("audit", "--output", run, "--overwrite").code == 0
    assert {name: (run / name).read_bytes() for name in results} == results
    assert not (run / "checkpoint").exists()


# -- tables of tensors -----------------------------------------------------------------------------------------------------

ENTRIES: dict[str, str] = {
    "no mapping": "[]",
    "null": "null",
    "without a shape": '{"dtype": "F64", "data_offsets": [0, 8]}',
    "a type that is none": '{"dtype": "F99", "shape": [1], "data_offsets": [0, 8]}',
    "a type that is a number": '{"dtype": 64, "shape": [1], "data_offsets": [0, 8]}',
    "a size below 0": '{"dtype": "F64", "shape": [-1], "data_offsets": [0, 8]}',
    "a size that is NaN": '{"dtype": "F64", "shape": [NaN], "data_offsets": [0, 8]}',
    "a size beyond 64 bits": '{"dtype": "F64", "shape": [18446744073709551616], "data_offsets": [0, 8]}',
    "sizes whose product is beyond 64 bits": '{"dtype": "F64", "shape": [4294967296, 4294967296], "data_offsets": [0, 8]}',
    "a place that ends before it begins": '{"dtype": "F64", "shape": [1], "data_offsets": [8, 0]}',
    "a place beyond the file": '{"dtype": "F64", "shape": [1], "data_offsets": [0, 9007199254740992]}',
    "a place below 0": '{"dtype": "F64", "shape": [1], "data_offsets": [-8, 0]}',
}
"""What the table of a file says of its first tensor."""
TABLES: dict[str, Callable[[str, str], str]] = {
    "a name that is half a character": lambda table, name: table.replace(json.dumps(name), '"\\ud800"', 1),
    "metadata that are numbers": lambda table, name: '{"__metadata__": {"format": 1}, ' + table[1:],
    "metadata that are null values": lambda table, name: '{"__metadata__": {"format": null}, ' + table[1:],
    "metadata that are a list": lambda table, name: '{"__metadata__": ["format"], ' + table[1:],
    "nested deeply": lambda table, name: '{"__metadata__": ' + '{"a": ' * 5000 + "1" + "}" * 5000 + ", " + table[1:],
}
READ_BY = {
    "statistics.safetensors": ("score --output RUN --overwrite",),
    "scores.safetensors": ("plan --output RUN --overwrite", "ask overlap RUN", "inspect RUN --unit 0:1"),
    kept.FILE: ("restore RUN --output BACK",),
    "model/model.safetensors": ("export RUN --format hf --output BACK", "restore RUN --output BACK"),
}
"""File -> commands that cannot do without it. (`prune` and `evaluate` read it by way of the model, as `export` does.)"""


def with_table(path: Path, what: str) -> None:
    """Put the fault into the table of a safetensors file; its data stay."""
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    entries = {name: entry for name, entry in json.loads(raw[8:end]).items() if name != "__metadata__"}
    name = min(entries, key=lambda name: entries[name]["data_offsets"])
    if what in TABLES:
        table = TABLES[what](json.dumps(entries), name)
    else:
        table = changed(entries, (name,), ENTRIES[what])
    path.write_bytes(len(table.encode()).to_bytes(8, "little") + table.encode() + raw[end:])


def reseal(run: Path) -> None:
    """Write the hashes of what the files now hold into `run.json`: a stranger's folder, whose hashes are right."""
    record = json.loads((run / "run.json").read_text())
    for stage in record["stages"].values():
        stage["files"] = seal(run, stage["files"])
    (run / "run.json").write_text(json.dumps(record))


def call(fairprune: Command, command: str, run: Path) -> Any:
    places = {"RUN": run, "BACK": run.parent / "back"}
    return fairprune(*(places.get(word, word) for word in command.split()))


@pytest.mark.parametrize("what", [*ENTRIES, *TABLES])
def test_a_table_of_tensors_that_is_wrong(
    what: str, finished: Path, tmp_path: Path, fairprune: Command, snapshot: Command
) -> None:
    for number, (name, commands) in enumerate(READ_BY.items()):
        run = Path(shutil.copytree(finished, tmp_path / str(number) / "run"))
        with_table(run / name, what)
        reseal(run)
        before = snapshot(run, times=True)
        for command in commands:
            answer = call(fairprune, command, run)
            assert answer.code == 2, (name, command, answer.err)
            (line,) = answer.errors
            assert len(line) <= 520
            assert name.rpartition("/")[2] in line, (name, command, line)
            assert snapshot(run, times=True) == before
            assert not (run.parent / "back").exists()


NAMES: dict[str, Callable[[dict[str, Any]], object]] = {
    "a category for some sites alone": lambda t: t.pop(next(name for name in t if name.startswith("bias@"))),
    "a category without a name": lambda t: t.update({name.replace("bias@race", "bias@"): t.pop(name) for name in list(t)}),
    "a kind that is none": lambda t: t.update(
        {name.replace("bias/", "guess/"): value.clone() for name, value in t.items() if name.startswith("bias/")}
    ),
    "a bias below 0": lambda t: [value.neg_() for name, value in t.items() if name.startswith("bias")],
    "no categories": lambda t: [t.pop(name) for name in list(t) if name.startswith("bias@")],
}
"""What is wrong in `scores.safetensors`."""


@pytest.mark.parametrize("what", NAMES)
def test_scores_that_cannot_be(what: str, finished: Path, tmp_path: Path, fairprune: Command) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    tensors = load_file(run / "scores.safetensors")
    NAMES[what](tensors)
    save_file(tensors, run / "scores.safetensors")
    reseal(run)
    for command in READ_BY["scores.safetensors"]:
        answer = call(fairprune, command, run)
        assert answer.code == 2, (command, answer.err)
        (line,) = answer.errors
        assert "scores.safetensors" in line
