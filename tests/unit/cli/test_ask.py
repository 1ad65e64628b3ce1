"""`fairprune ask` and `fairprune inspect`: text for people, JSON that stands alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def test_questions_on_the_command_line(fairprune: Callable[..., Any], finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    for words in (
        ("ask", "overlap", folder),
        ("ask", "transfer", folder),
        ("ask", "stability", folder, "--replicates", 3),
        ("ask", "causal", folder, "--draws", 2),
        ("inspect", folder, "--unit", "0:3"),
    ):
        answer = fairprune(*words, "--quiet")
        assert answer.code == 0, answer.err
        assert answer.out.strip()
        assert json.loads(fairprune(*words, "--quiet", "--json").out)["format"].startswith("fairprune-")
    assert fairprune("ask", "overlap", tmp_path / "nowhere").code == 2
    assert fairprune("inspect", folder).code == 2
