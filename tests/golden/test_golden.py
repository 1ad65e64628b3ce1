"""Results of a fixed set of small commands against those recorded in `manifest.json`. To renew it: `make golden`."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent))
import renew

FEWEST_COMMANDS, FEWEST_FILES = 17, 185
"""Fewer would mean that the check no longer sees what it is for."""


@pytest.fixture(scope="module")
def kept() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(renew.MANIFEST.read_text(encoding="utf-8"))
    return data


def test_the_commands_give_what_was_recorded(kept: dict[str, Any], tmp_path: Path) -> None:
    """In a process of its own: nothing that other tests imported, cached or patched has a part in it."""
    output = tmp_path / "manifest.json"
    done = subprocess.run(
        [sys.executable, renew.__file__, "--output", str(output)], capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
    now = json.loads(output.read_text(encoding="utf-8"))
    assert len(now["commands"]) >= FEWEST_COMMANDS
    assert len(now["files"]) >= FEWEST_FILES
    other = {name for name, value in now["environment"].items() if kept["environment"].get(name) != value}
    if other:
        warnings.warn(
            f"exit codes and names of files were compared, hashes were not: {renew.MANIFEST.name} holds for another environment, "
            f"which differs in {', '.join(sorted(other))}. To compare hashes here, run `make golden` on the commit before the change",
            stacklevel=1,
        )
    changed = renew.differences(kept, now, hashes=not other)
    assert not changed, "\n".join([*changed, "If this is intended, say why in the commit, and renew with `make golden`"])


def test_the_manifest_is_complete(kept: dict[str, Any]) -> None:
    assert [each["command"] for each in kept["commands"]] == [text for text, _ in renew.COMMANDS]
    assert len(kept["commands"]) >= FEWEST_COMMANDS
    assert len(kept["files"]) >= FEWEST_FILES
    assert {each["exit"] for each in kept["commands"][:-1]} == {0}
    assert kept["commands"][-1]["exit"] == 2
    assert {*renew.PACKAGES, "python", "machine", "cpu", "cpu_capability"} == set(kept["environment"])


@pytest.mark.parametrize("hashes", [True, False])
def test_every_kind_of_difference_is_found(kept: dict[str, Any], hashes: bool) -> None:
    assert renew.differences(kept, copy.deepcopy(kept), hashes=hashes) == []
    now = copy.deepcopy(kept)
    paths = list(now["files"])
    del now["files"][paths[0]]
    now["files"]["more.json"] = "0"
    now["files"][paths[1]] = "0"
    now["commands"][0]["exit"] = 1
    now["commands"][1]["stdout"] = "0"
    del now["commands"][2]
    commands = [each["command"] for each in kept["commands"]]
    expected = [
        f"exit code 0 before, 1 now: {commands[0]}",
        f"another stdout: {commands[1]}",
        f"no longer run: {commands[2]}",
        f"no longer written: {paths[0]}",
        f"another content: {paths[1]}",
        "new: more.json",
    ]
    found = renew.differences(kept, now, hashes=hashes)
    assert sorted(found) == sorted(line for line in expected if hashes or not line.startswith("another"))


def test_only_timings_are_left_out_of_a_hash(tmp_path: Path) -> None:
    path = tmp_path / "run.json"

    def hashed(**changes: Any) -> bytes:
        data = {"seconds": {"read": 0.1}, "versions": {"torch": "2"}, "inner": [{"seconds": 1, "n": 3}], **changes}
        path.write_text(json.dumps(data), encoding="utf-8")
        return renew.content(path)

    assert hashed(seconds={"read": 9}, inner=[{"seconds": 2, "n": 3}], versions={}) == hashed()
    assert hashed(inner=[{"seconds": 1, "n": 4}]) != hashed()
    page = tmp_path / "report.html"
    pages = []
    for text in ("<dd>0.1 s</dd><dd>3</dd>", "<dd>12.4 s</dd><dd>3</dd>", "<dd>0.1 s</dd><dd>4</dd>"):
        page.write_text(text, encoding="utf-8")
        pages.append(renew.content(page))
    assert pages[0] == pages[1] != pages[2]
    tensors = []
    for value, metadata in ((1.0, {"a": "1", "b": "2"}), (1.0, {"b": "2", "a": "1"}), (2.0, {"a": "1", "b": "2"})):
        save_file({"x": torch.tensor([value])}, tmp_path / "x.safetensors", metadata=metadata)
        tensors.append(renew.content(tmp_path / "x.safetensors"))
    assert tensors[0] == tensors[1] != tensors[2]
