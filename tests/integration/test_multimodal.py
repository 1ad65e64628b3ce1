"""A text model with a vision tower from folder to folder: what is no text decoder is neither lost nor changed, without a word."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from fairprune_framework.testing.families import small_model
from fairprune_framework.testing.tiny import tiny_tokenizer


@pytest.mark.parametrize(("family", "tower"), [("qwen3_5", "visual"), ("gemma3", "vision_tower")])
def test_the_tower_is_there_after_prune_and_restore(
    family: str, tower: str, tmp_path: Path, prompts: Path, fairprune: Callable[..., Any], quick: tuple[str, ...]
) -> None:
    folder = tmp_path / "m"
    small_model(family, "wrapper").save_pretrained(folder)  # type: ignore[operator]
    tiny_tokenizer().save_pretrained(folder)
    answer = fairprune("run", folder, "--prompts", prompts, "--output", tmp_path / "out", "--recipe", "variance", *quick)
    assert answer.code == 0, answer.err
    answer = fairprune("restore", tmp_path / "out", "--output", tmp_path / "back")
    assert answer.code == 0, answer.err
    assert "bit by bit the original" in answer.out
    original, pruned, restored = (
        load_file(path / "model.safetensors") for path in (folder, tmp_path / "out" / "model", tmp_path / "back")
    )
    assert any(tower in name for name in original)
    assert original.keys() == pruned.keys() == restored.keys()
    assert all(restored[name].equal(values) for name, values in original.items())
    changed = {name for name, values in original.items() if not pruned[name].equal(values)}
    assert changed
    assert not any(tower in name for name in changed)
    classes = [json.loads((path / "config.json").read_text())["architectures"] for path in (folder, tmp_path / "out" / "model")]
    assert classes[0] == classes[1]
