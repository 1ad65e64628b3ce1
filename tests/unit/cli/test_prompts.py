"""`fairprune prompts`: build a set, and check one under a tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def test_prompts_check(fairprune: Any, llama: Path, prompts: Path) -> None:
    answer = fairprune("prompts", "check", prompts, "--model", llama)
    assert answer.code == 0, answer.err
    assert "12 contrasts, 29 texts" in answer.out
    assert max(map(len, answer.out.splitlines()[1:])) <= 100
    report = json.loads(fairprune("prompts", "check", prompts, "--model", llama, "--json").out)
    assert report["contrasts"] == 12
    assert {row["category"]: row["role"] for row in report["categories"]} == {
        "age": "demographic",
        "race": "demographic",
        "stature": "control",
    }
    assert report["equal_length"] == 7
    assert report["context"] == 512


def test_prompts_build_then_check(fairprune: Any, llama: Path, tmp_path: Path) -> None:
    templates, values, output = tmp_path / "t.yaml", tmp_path / "v.csv", tmp_path / "set.jsonl"
    templates.write_text("- {category: race, template_id: a, context: work, text: 'The {attribute} nurse walked home .'}\n")
    values.write_text("category,attribute\nrace,Black\nrace,white\nrace,Asian\n")
    answer = fairprune("prompts", "build", templates, values, "--output", output)
    assert answer.code == 0, answer.err
    assert answer.out.startswith("1 contrast, 3 texts")
    assert fairprune("prompts", "check", output, "--model", llama).code == 0
