"""The tour of the code against the code: every function that it names exists, and a run passes all of them."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import json
import re
import shlex
import sys
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

from fairprune_framework.cli.main import main
from fairprune_framework.testing.tiny import save_tiny, tiny_contrasts

TOUR = Path(__file__).parents[2] / "docs/tour.md"
NAMED = list(dict.fromkeys(re.findall(r"`([a-z_.]+):(\w+)`", TOUR.read_text(encoding="utf-8"))))


def _object(module: str, name: str) -> Any:
    package = "" if module.startswith("fairprune_") else "fairprune_framework."
    return getattr(importlib.import_module(package + module), name)


def _codes(named: Any) -> set[CodeType]:
    """The code of a function; of a class, that of its methods and properties."""
    if inspect.isfunction(unwrapped := inspect.unwrap(named)):
        return {unwrapped.__code__}
    members = [member.fget if isinstance(member, property) else member for member in vars(named).values()]
    return {inspect.unwrap(member).__code__ for member in members if inspect.isfunction(member)}


@pytest.fixture(scope="module")
def passed(tmp_path_factory: pytest.TempPathFactory) -> set[CodeType]:
    """The code that one small run calls."""
    folder = tmp_path_factory.mktemp("tour")
    save_tiny(folder / "model", "llama")
    (folder / "prompts.jsonl").write_text("".join(json.dumps(contrast.to_json()) + "\n" for contrast in tiny_contrasts()))
    called: set[CodeType] = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            called.add(frame.f_code)

    options = "--budget 0.05 --policy.cost 0.5 --calibration-tokens 32 --force --quiet"
    words = shlex.split(f"run model --prompts prompts.jsonl --output run {options}")
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
        sys.setprofile(note)
        try:
            code = main(words)
        finally:
            sys.setprofile(None)
    assert code == 0
    return called


def test_the_tour_names_something_of_every_stage() -> None:
    stages = {"read", "audit", "score", "plan", "prune", "evaluate", "report"}
    assert {f"stages.{stage}" for stage in stages} <= {module for module, _ in NAMED}


@pytest.mark.parametrize(("module", "name"), NAMED, ids=[f"{module}:{name}" for module, name in NAMED])
def test_a_run_passes_what_the_tour_names(module: str, name: str, passed: set[CodeType]) -> None:
    assert _codes(_object(module, name)) & passed, f"docs/tour.md names {module}:{name}, which a run does not call"
