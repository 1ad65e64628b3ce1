"""`fairprune plugins new`: what it writes passes its own tests, and nothing is written where it may not be."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from fairprune_framework import discovery


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.slow) if kind in ("importance", "policy") else kind for kind in discovery.GROUPS],
)
def test_what_is_written_passes_its_own_tests(kind: discovery.Kind, fairprune: Any, tmp_path: Path) -> None:
    answer = fairprune("plugins", "new", "my-first-one", "--kind", kind, "--output", str(tmp_path))
    assert answer.code == 0, answer.err
    folder = tmp_path / "my-first-one"
    assert str(folder) in answer.out
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"] == {discovery.GROUPS[kind]: {"my-first-one": "my_first_one:MyFirstOne"}}
    assert project["optional-dependencies"]["test"] == ["pytest>=9"]
    words = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=folder,
        env=words,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_every_template_is_clean(tmp_path: Path, fairprune: Any) -> None:
    for kind in discovery.GROUPS:
        assert fairprune("plugins", "new", f"a-{kind}", "--kind", kind, "--output", str(tmp_path)).code == 0
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", "--line-length", "140", "--select", "E,F,I,B,UP", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("My_Score", "lower-case words"),
        ("variance", "has that name"),
        ("there", "is there already"),
        ("..", "words"),
        ("class", "cannot be called that"),
        ("json", "cannot be called that"),
    ],
)
def test_names_that_cannot_be(name: str, words: str, fairprune: Any, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    answer = fairprune("plugins", "new", name, "--kind", "bias", "--output", str(tmp_path))
    assert answer.code == 2
    assert words in answer.err
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_folder_that_is_not_there(fairprune: Any, tmp_path: Path) -> None:
    answer = fairprune("plugins", "new", "mine", "--kind", "policy", "--output", str(tmp_path / "none"))
    assert (answer.code, list(tmp_path.iterdir())) == (2, [])
    assert "is no folder" in answer.err
