"""`doctor` tells the truth about the environment; the completion script completes in a real shell."""

from __future__ import annotations

import json
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest


def test_doctor_says_what_is_there(fairprune: Any) -> None:
    answer = fairprune("doctor", "--json")
    report = json.loads(answer.out)
    assert (answer.code, report["ok"]) == (0, True)
    found = {one["what"]: one for one in report["findings"]}
    for name in ("torch", "transformers", "lightning"):
        assert found[name]["text"] == metadata.version(name)
    assert {"python", "cpu", "plugins", "smollm2-135m", "hub"} <= set(found)
    plain = fairprune("doctor").out
    assert plain.endswith("nothing is broken\n")
    assert max(map(len, plain.splitlines())) <= 80


def test_doctor_names_what_is_broken(fairprune: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from fairprune_framework import discovery
    from fairprune_framework.cli import doctor

    entry = discovery.Entry(kind="bias", name="gone", distribution="elsewhere", version="1", value="no_such_module:Gone")
    known = discovery.entries
    monkeypatch.setattr(doctor.discovery, "entries", lambda kind: [*known(kind), *([entry] if kind == "bias" else [])])
    monkeypatch.setattr(doctor, "PACKAGES", ("torch", "no-such-package"))
    answer = fairprune("doctor", "--json")
    report = json.loads(answer.out)
    assert (answer.code, report["ok"]) == (1, False)
    broken = {one["what"]: one["text"] for one in report["findings"] if one["state"] == "broken"}
    assert set(broken) == {"no-such-package", "bias gone"}
    assert "no_such_module" in broken["bias gone"]


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
