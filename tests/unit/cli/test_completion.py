"""The completion script names every command, and completes in a real shell."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh", "fish"])
def test_completion_names_every_command(fairprune: Any, shell: str) -> None:
    pytest.importorskip("shtab")
    answer = fairprune("completion", shell)
    assert answer.code == 0, answer.err
    for word in ("evaluate", "restore", "doctor"):
        assert word in answer.out


def test_completion_completes_in_bash(fairprune: Any, tmp_path: Path) -> None:
    pytest.importorskip("shtab")
    if (bash := shutil.which("bash")) is None:
        pytest.skip("there is no bash")
    script = tmp_path / "completion.bash"
    script.write_text(fairprune("completion", "bash").out)

    def completed(*words: str) -> list[str]:
        ask = (
            f"source {script}; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; "
            "$(complete -p fairprune | sed 's/.*-F \\([^ ]*\\).*/\\1/'); printf '%s\\n' \"${COMPREPLY[@]}\""
        )
        return subprocess.run([bash, "-c", ask], capture_output=True, text=True, check=True).stdout.split()

    assert completed("fairprune", "eval") == ["evaluate"]
    assert completed("fairprune", "run", "--bud") == ["--budget"]


def test_completion_without_shtab_says_what_to_install(fairprune: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    answer = fairprune("completion", "bash")
    assert (answer.code, len(answer.errors)) == (2, 1)
    assert "fairprune_framework[completion]" in answer.errors[0]
