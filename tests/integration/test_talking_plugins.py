"""What a plugin prints while a stage works is no part of its answer, and a plugin that ends the interpreter ends no command silently."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from fairprune_framework import discovery

SOURCE = """
from dataclasses import dataclass
from fairprune_framework.api import BiasScorer, Needs, Statistic

@dataclass(frozen=True, kw_only=True)
class Spread(Statistic):
    name: str = "spread"
    code: int | None = None

    def summands(self, obs):
        print("summed")
        if self.code is not None:
            raise SystemExit(self.code)
        acts = obs.aligned["neuron"]
        return {"off": (acts.amax((1, 2)) - acts.amin((1, 2))).abs().unsqueeze(1)}

@dataclass(frozen=True, kw_only=True)
class Talking(BiasScorer):
    code: int | None = None

    def needs(self):
        print("asked")
        return Needs(statistics=(Spread(code=self.code),))

    def score(self, at):
        print("scored")
        return at.sums["spread.off"][0]
"""


@pytest.fixture
def words(llama: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "talking_plugin.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    known = discovery.offers
    point = metadata.EntryPoint("talking", "talking_plugin:Talking", "fairprune.bias_scorers")
    monkeypatch.setattr(discovery, "offers", lambda: [*known(), (point, "toys", "1")])
    yield (
        llama,
        "--prompts",
        prompts,
        "--output",
        tmp_path / "run",
        "--recipe",
        "relative-variance",
        "--bias",
        "talking",
        "--json",
    )
    sys.modules.pop("talking_plugin", None)


def test_json_stands_alone_beside_a_plugin_that_prints(fairprune: Any, words: Any) -> None:
    folder = words[words.index("--output") + 1]
    for command, said, key in (
        (("audit", *words), {"asked", "summed"}, "stages"),
        (("score", folder, "--json"), {"asked", "scored"}, "stages"),
        (("score", folder, "--bias", "talking,variance", "--json"), {"asked", "scored"}, "scorers"),
    ):
        answer = fairprune(*command)
        assert answer.code == 0, answer.err
        assert key in json.loads(answer.out), command
        assert said <= set(answer.errors), command


@pytest.mark.parametrize("code", [0, 5])
def test_a_statistic_that_ends_the_interpreter_is_one_line(fairprune: Any, words: Any, code: int) -> None:
    answer = fairprune("audit", *words, "--bias.code", code)
    assert (answer.code, answer.out) == (2, "")
    assert answer.errors[-1] == (
        f"fairprune: error: statistic 'spread' raised SystemExit: {code} (cause: SystemExit; FAIRPRUNE_DEBUG=1 shows the traceback)"
    )
