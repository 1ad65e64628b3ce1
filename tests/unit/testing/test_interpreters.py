"""Plugins that go through a set of words: caught by two interpreters, whose sets are in other orders."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fairprune_framework import discovery
from fairprune_framework.api import BiasScorer, SiteContext
from fairprune_framework.testing.contracts import check_plugin
from fairprune_framework.testing.interpreters import answers

SOURCE = """
from dataclasses import dataclass

import torch

from fairprune_framework.api import BiasScorer, Choice, ImportanceScorer, Needs, SelectionPolicy

WORDS = {"age", "gender", "religion", "nationality", "disability", "ethnicity", "orientation", "status"}


def written(at):
    return at.weights["out"].double().square().sum(1)


@dataclass(frozen=True, kw_only=True)
class Bias(BiasScorer):
    \"\"\"Bad: the second word of a set decides.\"\"\"

    def needs(self):
        return Needs(weights=True)

    def score(self, at):
        return written(at) ** len([*WORDS][1])


@dataclass(frozen=True, kw_only=True)
class Importance(ImportanceScorer):
    \"\"\"Bad: each word has the weight of its place in a set.\"\"\"

    def needs(self):
        return Needs(weights=True)

    def score(self, at):
        return written(at) ** (1 + [*WORDS].index("gender"))


@dataclass(frozen=True, kw_only=True)
class Policy(SelectionPolicy):
    \"\"\"Bad: takes of the site whose name a set gives first.\"\"\"

    def select(self, scores, budget, context):
        site = next(iter(set(scores.sites)))
        return Choice(units={site: torch.tensor([0])}, order={site: torch.ones(1, dtype=torch.float64)})


@dataclass(frozen=True, kw_only=True)
class Sorted(Bias):
    \"\"\"Good: the first in the alphabet.\"\"\"

    def score(self, at):
        print("a plugin may print")
        return written(at) ** len(min(WORDS))


@dataclass(frozen=True, kw_only=True)
class Leaving(Bias):
    \"\"\"Bad: ends the process.\"\"\"

    def score(self, at):
        import os

        os._exit(3)
"""


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    folder = tmp_path_factory.mktemp("words")
    (folder / "words_in_a_set.py").write_text(SOURCE)
    sys.path.insert(0, str(folder))
    try:
        yield importlib.import_module("words_in_a_set")
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("words_in_a_set", None)


@pytest.mark.parametrize(("kind", "name"), [("bias", "Bias"), ("importance", "Importance"), ("policy", "Policy")])
def test_what_depends_on_the_order_of_a_set_is_caught(
    kind: discovery.Kind, name: str, plugins: ModuleType, fails: Callable[..., None]
) -> None:
    fails(kind, getattr(plugins, name)(), "hash-seed")


def test_what_sorts_passes_and_prints_what_it_likes(plugins: ModuleType) -> None:
    assert check_plugin("bias", plugins.Sorted(), only=["hash-seed"]).passed == ("hash-seed",)


def test_a_plugin_that_ends_the_other_interpreter(plugins: ModuleType) -> None:
    failures = check_plugin("bias", plugins.Leaving(), only=["hash-seed"]).failures
    assert "it ended with the code 3" in failures["hash-seed"]
    one, other = answers("bias", plugins.Sorted())  # others are started
    assert one.keys() == other.keys()


def test_what_cannot_be_sent_is_said(tmp_path: Path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Local(BiasScorer):
        """Of a function."""

        def score(self, at: SiteContext) -> Any:
            raise NotImplementedError

    report = check_plugin("bias", Local(), only=["hash-seed"])
    assert "cannot be sent to another interpreter" in report.skipped["hash-seed"]
