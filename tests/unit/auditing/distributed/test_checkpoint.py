"""Checkpoints of an audit: parts add up, damage falls back, and what belongs to another audit is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fairprune_framework.auditing.distributed.checkpoint import Checkpoint, Part
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


def test_another_binding_is_refused_by_name(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, {"model": "abc", "code version": "1"})
    checkpoint.begin(checkpoint.load())
    checkpoint.keep(part(0, 1.0), rank=0)
    with pytest.raises(RunFolderError, match=r"another model \(abc, now abd\)"):
        Checkpoint(tmp_path, {"model": "abd", "code version": "1"}).load()
