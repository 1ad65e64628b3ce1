"""Checkpoints of an audit: parts add up, damage falls back, and what belongs to another audit is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fairprune_framework.auditing.distributed.checkpoint import Checkpoint, Part, _checksum
from fairprune_framework.auditing.distributed.completed import CompletedBatches
from fairprune_framework.auditing.micro_batch import BatchId
from fairprune_framework.errors import RunFolderError


def part(number: int, value: float) -> Part:
    done = CompletedBatches()
    done.add(BatchId(0, 0, number, 9, number + 1), 1, 1)
    words = {"contrasts/site/x.y": torch.tensor([value, 0.0], dtype=torch.float64).reshape(2, 1, 1, 1)}
    return Part(words=words, counts={"contrasts": [1]}, done=done)


def test_sessions_add_up_and_a_damaged_base_falls_back(tmp_path: Path) -> None:
    heard: list[str] = []
    for session in range(3):
        checkpoint = Checkpoint(tmp_path, {"model": "m"}, heard.append)
        before = checkpoint.load()
        assert len(before.done.bits and bin(before.done.bits[0, 0]).strip("0b")) == session
        checkpoint.begin(before)
        assert checkpoint.session == session
        checkpoint.keep(part(session, 10.0**session), rank=session)
    assert not heard
    base = max(tmp_path.glob("base-*"))
    base.write_bytes(base.read_bytes()[:-1])
    found = Checkpoint(tmp_path, {"model": "m"}, heard.append).load()
    assert found.words["contrasts/site/x.y"].flatten().tolist() == [111.0, 0.0]
    assert found.counts == {"contrasts": [3]}
    assert base.name in heard[0]


@pytest.mark.parametrize("field", ["format", "binding", "counts", "done", "splits", "sequence"])
def test_a_field_that_lacks_under_a_valid_checksum_is_damage(field: str, tmp_path: Path) -> None:
    heard: list[str] = []
    checkpoint = Checkpoint(tmp_path, {"model": "m"})
    checkpoint.begin(checkpoint.load())
    checkpoint.keep(part(0, 1.0), rank=0)
    for path in tmp_path.glob("*.safetensors"):
        words = load_file(path)
        with safe_open(path, framework="pt") as file:
            head = json.loads(file.metadata()["header"])
        del head[field]
        save_file(words, path, metadata={"header": json.dumps(head), "sha256": _checksum(head, words)})
    assert not Checkpoint(tmp_path, {"model": "m"}, heard.append).load().done.bits
    assert any(f"the field '{field}': field required" in line for line in heard)


def test_another_binding_is_refused_by_name(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, {"model": "abc", "code version": "1"})
    checkpoint.begin(checkpoint.load())
    checkpoint.keep(part(0, 1.0), rank=0)
    with pytest.raises(RunFolderError, match=r"another model \(abc, now abd\)"):
        Checkpoint(tmp_path, {"model": "abd", "code version": "1"}).load()


def test_the_first_reason_of_a_failure_stands_and_is_for_the_others(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "checkpoint", {})
    checkpoint.write_failure(1, ValueError("no room\n  for this \udcff"))
    checkpoint.write_failure(1, ValueError("what follows from it"))
    assert checkpoint.other_rank_failure(1) is None
    assert checkpoint.other_rank_failure(0) == "rank 1 failed: no room for this ?"
    (tmp_path / "checkpoint" / "failed-0.json").write_text("{", encoding="utf-8")  # being written, or damaged
    assert checkpoint.other_rank_failure(2) == "rank 1 failed: no room for this ?"
    (tmp_path / "checkpoint" / "failed-0.json").write_text('{"rank": 0, "reason": ["a list"]}', encoding="utf-8")
    assert checkpoint.other_rank_failure(2) == "rank 1 failed: no room for this ?"
    checkpoint.clear_failures()
    assert checkpoint.other_rank_failure(0) is None


def test_a_failure_is_not_written_where_no_run_folder_is(tmp_path: Path) -> None:
    Checkpoint(tmp_path / "absent" / "checkpoint", {}).write_failure(1, KeyError())
    assert not list(tmp_path.iterdir())


def test_clearing_removes_what_a_kill_left_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    checkpoint = Checkpoint(folder, {})
    checkpoint.keep(part(0, 1.0), rank=0)
    checkpoint.write_failure(0, ValueError())
    for name in (".rank-000000-00000.a.safetensors.x1y2", ".failed-0.json.x1y2"):
        (folder / name).touch()
    (folder / "notes.txt").touch()
    checkpoint.clear()
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    (folder / "notes.txt").unlink()
    checkpoint.clear()
    assert not folder.exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda words: words.fill_(float("nan")), "holds NaN or Inf"),
        (lambda words: words.to(torch.bfloat16), "is no pair of words in float64"),
        (lambda words: words[0], "is no pair of words in float64"),
        (lambda words: words.repeat(1, 2, 1, 1), "holds 2 groups, of which no counts stand there"),
        (lambda words: words.repeat(1, 1, 1, 3), r"is (2, 1, 1, 3), elsewhere (2, 1, 1, 1)"),
    ],
)
def test_sums_that_do_not_fit_are_passed_over(change: Any, said: str, tmp_path: Path) -> None:
    heard: list[str] = []
    for session in range(2):
        checkpoint = Checkpoint(tmp_path, {})
        checkpoint.session = session
        one = part(session, 1.0)
        if session:
            one.words = {key: change(value).contiguous() for key, value in one.words.items()}
            path = tmp_path / "rank-000001-00000.a.safetensors"
            checkpoint.keep(part(session, 1.0), 0)
            with safe_open(path, framework="pt") as file:
                head = json.loads(file.metadata()["header"])
            try:
                checksum = _checksum(head, one.words)
            except TypeError:  # no numpy for it
                checksum = ""
            save_file(one.words, path, metadata={"header": json.dumps(head), "sha256": checksum})
        else:
            checkpoint.keep(one, 0)
    found = Checkpoint(tmp_path, {}, heard.append).load()
    assert found.words["contrasts/site/x.y"].flatten().tolist() == [1.0, 0.0]
    (line,) = heard
    assert said in line


def test_a_window_that_has_fewer_micro_batches_elsewhere_does_not_fit() -> None:
    done = CompletedBatches()
    done.add(BatchId(0, 0, 1, 7, 1), 1, 1)
    assert "has 7 micro-batches, elsewhere 9" in str(part(0, 1.0).misfit(Part(done=done)))
    assert part(0, 1.0).misfit(part(1, 1.0)) is None
