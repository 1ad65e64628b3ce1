"""Which file a name of calibration text stands for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fairprune_framework.calibration.builtin import text_file
from fairprune_framework.errors import UnknownName


def test_a_language_that_ships() -> None:
    path = text_file("builtin:en")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 64
    assert all(line["text"].strip() for line in lines)
    assert len({line["text"] for line in lines}) == 64


@pytest.mark.parametrize("name", ["mine.txt", "builtin", "folder/builtin:en.jsonl"])
def test_any_other_name_is_a_path(name: str) -> None:
    assert text_file(name) == Path(name)


@pytest.mark.parametrize("name", ["builtin:", "builtin:xx", "builtin:EN", "builtin:../en"])
def test_a_language_that_does_not(name: str) -> None:
    with pytest.raises(UnknownName, match=r"no built-in calibration text .* there are: en"):
        text_file(name)
