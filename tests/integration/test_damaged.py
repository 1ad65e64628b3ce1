"""Every result is what was written: a damaged file is named by the next command, and done again with `--overwrite`."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fairprune_framework.utilities.integrity import seal

Command = Callable[..., Any]


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path: Path) -> None:
    """One bit of the last byte but 8: in the data of safetensors, not in their header."""
    data = bytearray(path.read_bytes())
    data[-8] ^= 1
    path.write_bytes(data)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def removed(path: Path) -> None:
    path.unlink()


DAMAGES = (truncated, flipped, emptied, removed)
NEXT = {
    "contrasts.jsonl": ("audit --output RUN", "audit --output RUN --overwrite"),
    "statistics.safetensors": ("score --output RUN --overwrite", "audit --output RUN --overwrite"),
    "statistics.json": ("score --output RUN --overwrite", "audit --output RUN --overwrite"),
    "scores.safetensors": ("plan --output RUN --overwrite", "score --output RUN --overwrite"),
    "plan.json": ("prune --output RUN --overwrite", "plan --output RUN --overwrite"),
    "restoration.safetensors": ("restore RUN --output BACK", "prune --output RUN --overwrite"),
    "model/model.safetensors": ("evaluate --output RUN --overwrite", "prune --output RUN --overwrite"),
    "model/config.json": ("push RUN --repo a/b", "prune --output RUN --overwrite"),
    "model/README.md": ("push RUN --repo a/b", "report RUN"),
    "calibration.jsonl": ("prune --output RUN --overwrite", None),
}
"""File -> a command that uses it, and the one that makes it again."""


@pytest.fixture
def run(tmp_path: Path, finished: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def call(fairprune: Command, command: str, run: Path) -> Any:
    places = {"RUN": run, "BACK": run.parent / "back"}
    return fairprune(*(str(places.get(word, word)) for word in command.split()))


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", NEXT)
def test_a_damaged_file_is_named(name: str, damage: Callable[[Path], None], run: Path, fairprune: Command) -> None:
    if name == "calibration.jsonl" and damage in (removed, flipped):
        return  # removed it is made again, the same; its last bytes are text for people, which nothing reads
    damage(run / name)
    answer = call(fairprune, NEXT[name][0], run)
    assert answer.code == 2, answer.err
    assert len(answer.errors) == 1
    assert str(run / name) in answer.err or "has no card" in answer.err


@pytest.mark.parametrize("content", ["{", "", '{"ids": [1.5]}', '{"ids": [1000000]}', '{"ids": [-1]}', "[" * 100_000])
def test_damaged_calibration_text_is_refused_before_results_go(
    content: str, run: Path, fairprune: Command, snapshot: Callable[..., Any]
) -> None:
    (run / "calibration.jsonl").write_text(content)
    before = snapshot(run, times=True)
    answer = call(fairprune, "prune --output RUN --overwrite", run)
    assert answer.code == 2, answer.err
    assert len(answer.errors) == 1
    assert snapshot(run, times=True) == before


@pytest.mark.parametrize("name", [name for name, (_, again) in NEXT.items() if again])
def test_its_stage_is_done_again(name: str, run: Path, fairprune: Command) -> None:
    before = (run / name).read_bytes()
    flipped(run / name)
    again = NEXT[name][1]
    assert again is not None
    answer = call(fairprune, again, run)
    assert answer.code == 0, answer.err
    if name != "model/README.md":  # the card counts seconds of nothing, but names versions of a run that was shortened
        assert (run / name).read_bytes() == before


@pytest.mark.parametrize(
    "name", ["scores.safetensors", "plan.json", "evaluation.json", "exhibits.json", "exhibits.safetensors"]
)
def test_the_report_shows_what_is_there_and_names_what_is_not(name: str, run: Path, fairprune: Command) -> None:
    flipped(run / name)
    answer = fairprune("report", run)
    assert answer.code == 0, answer.err
    assert f"cannot be read: {run / name}: {run / name} is damaged or was changed" in answer.err
    assert f"<code>{name}</code> cannot be read" in (run / "report.html").read_text()


def test_files_are_hashed_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fairprune_framework.utilities import integrity

    read: list[Path] = []
    digest = integrity.file_digest
    monkeypatch.setattr(integrity, "file_digest", lambda path: read.append(path) or digest(path))
    files = json.loads((run / "run.json").read_text())["stages"]["prune"]["files"]
    assert integrity.damage(run, files) is None
    assert integrity.damage(run, files) is None
    assert len(read) == len(set(read)) <= len(files)
    flipped(run / "model" / "model.safetensors")
    assert "model.safetensors is damaged" in str(integrity.damage(run, files))


# -- wrong content under the right hash: a stranger's folder, a later release ----------------------------------------------


def resealed(run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    for stage in record["stages"].values():
        stage["files"] = seal(run, stage["files"])
    (run / "run.json").write_text(json.dumps(record))


TENSORS: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "NaN": lambda t: next(iter(t.values())).fill_(float("nan")),
    "Inf": lambda t: next(iter(t.values())).fill_(float("inf")),
    "float16": lambda t: t.update({key: value.half() for key, value in t.items()}),
    "one value less": lambda t: t.update({key: value[..., :-1].contiguous() for key, value in t.items()}),
    "other names": lambda t: t.update({f"{key}x": t.pop(key) for key in list(t)}),
    "other sites": lambda t: t.update({key.replace(".mlp", ".mlpx"): t.pop(key) for key in list(t)}),
    "nothing": lambda t: t.clear(),
}


@pytest.mark.parametrize("what", TENSORS)
@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("scores.safetensors", "plan --output RUN --overwrite"),
        ("scores.safetensors", "ask overlap RUN"),
        ("scores.safetensors", "inspect RUN --unit 0:1"),
        ("statistics.safetensors", "score --output RUN --overwrite"),
    ],
)
def test_tensors_of_another_kind(what: str, name: str, command: str, run: Path, fairprune: Command) -> None:
    tensors = load_file(run / name)
    TENSORS[what](tensors)
    save_file(tensors, run / name)
    resealed(run)
    answer = call(fairprune, command, run)
    assert answer.code in (1, 2), answer.out
    assert answer.code == 2 or name == "statistics.safetensors", answer.err
    assert len(answer.errors) == 1


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to all values in a JSON document."""
    found = [path] if path else []
    if isinstance(value, dict):
        for key, inner in value.items():
            found += leaves(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value[:2]):
            found += leaves(inner, (*path, index))
    return found


WRONG = (None, True, -1, 1.5, 10**400, "text", "", "\ud800", [], {}, ["x"], {"x": 1}, [[[]]])


def mutated(data: Any, draw: random.Random) -> Any:
    """The document with one value replaced, or one key removed."""
    data = json.loads(json.dumps(data))
    path = draw.choice(leaves(data))
    holder = data
    for step in path[:-1]:
        holder = holder[step]
    if isinstance(holder, dict) and draw.random() < 0.2:
        del holder[path[-1]]
    else:
        holder[path[-1]] = draw.choice(WRONG)
    return data


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("run.json", "report RUN"),
        ("run.json", "score --output RUN --overwrite"),
        ("run.json", "push RUN --repo a/b"),
        ("statistics.json", "score --output RUN --overwrite"),
        ("plan.json", "prune --output RUN --overwrite"),
        ("plan.json", "report RUN"),
        ("evaluation.json", "report RUN"),
        ("exhibits.json", "report RUN"),
    ],
)
def test_a_wrong_type_is_one_line(name: str, command: str, seed: int, run: Path, fairprune: Command) -> None:
    draw = random.Random(f"{name} {command} {seed}")
    data = mutated(json.loads((run / name).read_text()), draw)
    (run / name).write_text(json.dumps(data))
    if name != "run.json":
        resealed(run)
    answer = call(fairprune, command, run)
    assert answer.code in (0, 2), answer.err
    if answer.code == 2:
        assert len(answer.errors) == 1
        assert len(answer.errors[0]) <= 520


# -- sizes of a model ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": 10**6},
        {"hidden_size": 10**9},
        {"vocab_size": 10**9},
        {"intermediate_size": 10**12},
        {"num_attention_heads": 10**9},
    ],
)
def test_a_config_beyond_its_weights_allocates_nothing(
    change: dict[str, int], tmp_path: Path, llama: Path, prompts: Path, fairprune: Command
) -> None:
    model = Path(shutil.copytree(llama, tmp_path / "m"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | change))
    answer = fairprune("audit", model, "--prompts", prompts, "--output", tmp_path / "o")
    assert answer.code == 2
    assert "more than its weights hold" in answer.err
    assert not (tmp_path / "o").exists()
