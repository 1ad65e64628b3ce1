"""Whatever a method of a plugin does, a command says it in one line, ends with 2 and leaves nothing half-written; what plugins print
never enters an answer."""

from __future__ import annotations

import json
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from fairprune_framework import discovery

SOURCE = '''
import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from fairprune_framework.api import (
    ArchitectureAdapter, BiasScorer, Choice, ImportanceScorer, MlpAdapter, Needs, NextTokenDivergence, Pass, SelectionPolicy, Statistic,
    linear_trio,
)

@dataclass(frozen=True, kw_only=True)
class Linears(MlpAdapter):
    looked_for: ClassVar[str] = "three Linears"

    def projections(self, module):
        return linear_trio(module)

class Cancelled(BaseException):
    pass

class Unprintable(Exception):
    def __str__(self):
        raise ValueError("no words")

def act(self, method, good, strange=lambda: "strange"):
    """What a method returns: something good, unless it is the one that misbehaves."""
    if self.at != method:
        return good()
    print("chatter of", method)
    match self.how:
        case "print":
            return good()
        case "none":
            return None
        case "list":
            return ["a", 1]
        case "strange":
            return strange()
        case "raise":
            raise ZeroDivisionError("first line\\nsecond line")
        case "exit":
            raise SystemExit(0)
        case "cancel":
            raise Cancelled("stop")
        case "unprintable":
            raise Unprintable

@dataclass(frozen=True, kw_only=True)
class Divergence:
    at: str = ""
    how: str = ""

    def __call__(self, outputs):
        return act(self, "objective", lambda: NextTokenDivergence()(outputs), lambda: NextTokenDivergence()(outputs) * float("nan"))

@dataclass(frozen=True, kw_only=True)
class Sizes(Statistic):
    name: str = "sizes"
    at: str = ""
    how: str = ""
    stream: str = "contrasts"

    def after(self):
        return act(self, "after", lambda: ())

    def passes(self, layers):
        objective = Divergence(at=self.at, how=self.how) if self.stream == "contrasts" else None
        return act(self, "passes", lambda: (Pass(stream=self.stream, objective=objective),), lambda: (Pass(stream="dreams"),))

    def summands(self, obs):
        values = obs.products() if obs.grads else obs.acts["neuron"].mul(obs.mask.unsqueeze(-1))
        size_CRK = values.double().abs().sum((1, 2)).unsqueeze(1)
        return act(self, "summands", lambda: {"size": size_CRK}, lambda: {"size": size_CRK * float("nan")})

class Asks:
    def __post_init__(self):
        act(self, "made", lambda: None)

    def needs(self):
        statistic = Sizes(at=self.at, how=self.how, stream=self.stream)
        return act(self, "needs", lambda: Needs(statistics=(statistic,)), lambda: Needs(statistics="sizes", replicates="many"))

    def score(self, at):
        score_K = at.sums["sizes.size"][0] / at.observed.clamp_min(1)
        return act(self, "score", lambda: score_K, lambda: score_K * float("nan"))

    def finish(self, scores, at):
        return act(self, "finish", lambda: scores, lambda: {name: None for name in scores})

@dataclass(frozen=True, kw_only=True)
class Bias(Asks, BiasScorer):
    at: str = ""
    how: str = ""
    stream: ClassVar = "contrasts"

    def prepare(self, at):
        return act(self, "prepare", lambda: None)

@dataclass(frozen=True, kw_only=True)
class Importance(Asks, ImportanceScorer):
    at: str = ""
    how: str = ""
    stream: ClassVar = "calibration"

@dataclass(frozen=True, kw_only=True)
class Weightless(Asks, BiasScorer):
    at: str = ""
    how: str = ""
    stream: ClassVar = "contrasts"

    def needs(self):
        return Needs(weights=True)

    def score(self, at):
        score_K = at.weights["out"].double().abs().amax(1)
        return act(self, "score", lambda: score_K, lambda: score_K * float("nan"))

@dataclass(frozen=True, kw_only=True)
class Policy(Asks, SelectionPolicy):
    at: str = ""
    how: str = ""
    stream: ClassVar = "calibration"

    def select(self, scores, budget, context):
        units = {name: torch.arange(1) for name in scores.sites}
        strange = {name: torch.tensor([0.0]) for name in scores.sites}
        return act(self, "select", lambda: Choice(units=units), lambda: Choice(units=units, order=strange, categories={"x": None}))

@dataclass(frozen=True, kw_only=True)
class Adapter(ArchitectureAdapter):
    at: str = ""
    how: str = ""

    def __post_init__(self):
        act(self, "made", lambda: None)

    @property
    def known(self):
        return Linears()

    def sites(self, model):
        return act(self, "sites", lambda: self.known.sites(model), lambda: [*self.known.sites(model), "a site"])

    def tap(self, model, sites, taps, handler):
        return act(self, "tap", lambda: self.known.tap(model, sites, taps, self.shown(handler)), lambda: self.twice())

    def shown(self, handler):
        def show(site, tap, values, rows):
            return act(self, "shown", lambda: handler(site, tap, values, rows), lambda: handler(site, tap, values[:, :3], rows))
        return show

    @contextmanager
    def twice(self):
        yield
        yield
'''
METHODS = {
    "bias": ("made", "needs", "after", "passes", "objective", "summands", "prepare", "score", "finish"),
    "importance": ("made", "needs", "after", "passes", "summands", "score", "finish"),
    "policy": ("made", "needs", "after", "passes", "summands", "select"),
    "weightless": ("made", "score", "finish"),
    "architecture": ("made", "sites", "tap", "shown"),
}
WAYS = ("print", "none", "list", "strange", "raise", "exit", "cancel", "unprintable")
FILES = {
    "audit": ("statistics.safetensors", "statistics.json"),
    "score": ("scores.safetensors",),
    "plan": ("plan.json",),
    "prune": ("model",),
    "evaluate": ("evaluation.json",),
    "report": ("report.html",),
}
"""What each stage leaves, and none that was not finished."""
RETURNS_NOTHING = {"made", "shown", "prepare"}
"""Methods whose result nobody looks at: all values are as good."""


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "hostile_plugin.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    known = list(discovery.offers())
    for kind, name in {"bias": "Bias", "importance": "Importance", "policy": "Policy", "architecture": "Adapter"}.items():
        point = metadata.EntryPoint("hostile", f"hostile_plugin:{name}", discovery.GROUPS[kind])  # type: ignore[index]
        known.append((point, "toys", "1"))
    known.append((metadata.EntryPoint("weightless", "hostile_plugin:Weightless", discovery.GROUPS["bias"]), "toys", "1"))
    monkeypatch.setattr(discovery, "offers", lambda: known)
    yield
    sys.modules.pop("hostile_plugin", None)


def options(kind: str, at: str, how: str) -> tuple[str, ...]:
    option, name = ("bias", "weightless") if kind == "weightless" else (kind, "hostile")
    others = () if kind == "architecture" else ("--architecture", "glu")
    return (f"--{option}", name, f"--{option}.at", at, f"--{option}.how", how, *others)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize(("kind", "at"), [(kind, at) for kind, methods in METHODS.items() for at in methods])
def test_a_misbehaving_method_is_one_line(
    kind: str, at: str, how: str, hostile: None, fairprune: Any, llama: Path, prompts: Path, quick: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    words = (llama, "--prompts", prompts, "--output", folder, *quick, "--json", "--no-speed", "--random-sets", "0")
    answer = fairprune("run", *words, *options(kind, at, how))
    said = [line for line in answer.errors if line != f"chatter of {at}"]
    assert len(said) < len(answer.errors), "it was not asked at all"
    if answer.code == 0:
        assert how == "print" or (at in RETURNS_NOTHING and how in ("none", "list", "strange"))
        assert json.loads(answer.out)["stages"].keys() >= {"evaluate", "report"}
        assert not said
        return
    assert (answer.code, answer.out) == (2, ""), answer.err
    if folder.exists():
        done = json.loads((folder / "run.json").read_text())["stages"]
        assert not list(folder.glob(".*"))
        for stage, names in FILES.items():
            assert stage in done or not any((folder / name).exists() for name in names), stage
    assert len(said) == 1, answer.err
    assert said[0].startswith("fairprune: error: ")
    assert any(name in said[0] for name in ("hostile", "weightless", "Weightless", "sizes", "Divergence")), said


@pytest.mark.parametrize(("kind", "at"), [("bias", "summands"), ("importance", "finish"), ("policy", "select")])
def test_a_mended_plugin_goes_on(
    kind: str, at: str, hostile: None, fairprune: Any, llama: Path, prompts: Path, quick: Any, tmp_path: Path
) -> None:
    words = ("run", llama, "--prompts", prompts, "--output", tmp_path / "run", *quick, "--no-speed", "--random-sets", "0")
    answer = fairprune(*words, *options(kind, at, "raise"))
    assert (answer.code, "ZeroDivisionError" in answer.err) == (2, True)
    answer = fairprune(*words, *options(kind, "nothing", "nothing"), "--overwrite")
    assert answer.code == 0, answer.err
    assert (tmp_path / "run" / "report.html").is_file()


SPOILING = """
from dataclasses import dataclass
from fairprune_framework.api import BiasScorer, Needs, NextTokenDivergence, Pass, Statistic

@dataclass(frozen=True, kw_only=True)
class Flat:
    def __call__(self, outputs):
        return NextTokenDivergence()(outputs).detach()

@dataclass(frozen=True, kw_only=True)
class Sizes(Statistic):
    name: str = "sizes"
    how: str = ""

    def passes(self, layers):
        return (Pass(objective=Flat() if self.how == "detached" else None),)

    def summands(self, obs):
        size_CRK = obs.acts["neuron"].double().abs().mul(obs.mask.unsqueeze(-1)).sum((1, 2)).unsqueeze(1)
        if self.how == "raising":
            raise ZeroDivisionError("by nought")
        return {3 if self.how == "numbered" else "size": size_CRK * (float("inf") if self.how == "infinite" else 1)}

@dataclass(frozen=True, kw_only=True)
class Spoiling(BiasScorer):
    how: str = ""

    def needs(self):
        return Needs(statistics=(Sizes(how=self.how),))

    def score(self, at):
        return at.sums["sizes.size"][0]

""" + "".join(
    f"@dataclass(frozen=True, kw_only=True)\nclass {how.capitalize()}(Spoiling):\n    how: str = {how!r}\n\n"
    for how in ("raising", "numbered", "infinite", "detached")
)


def test_among_many_scorers_those_that_misbehave_are_skipped(
    fairprune: Any, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--bias all` goes on without them, each with its reason; a list that names one fails."""
    (tmp_path / "spoiling_plugin.py").write_text(SPOILING)
    monkeypatch.syspath_prepend(str(tmp_path))
    known = [offer for offer in discovery.offers() if offer[0].group != "fairprune.bias_scorers" or offer[0].name == "variance"]
    for name in ("spoiling", "raising", "numbered", "infinite", "detached"):
        point = metadata.EntryPoint(name, f"spoiling_plugin:{name.capitalize()}", discovery.GROUPS["bias"])
        known.append((point, "toys", "1"))
    monkeypatch.setattr(discovery, "offers", lambda: known)
    run = shutil.copytree(finished, tmp_path / "run")
    answer = fairprune("score", run, "--bias", "all", "--json")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert found["scorers"] == ["spoiling", "variance"]
    reasons = {"raising": "ZeroDivisionError", "numbered": "the output 3", "infinite": "NaN or Inf", "detached": "no gradient"}
    assert found["skipped"].keys() == reasons.keys()
    assert {name: why for name, why in found["skipped"].items() if reasons[name] not in why} == {}
    answer = fairprune("score", run, "--bias", "variance,raising", "--json")
    sys.modules.pop("spoiling_plugin", None)
    assert (answer.code, answer.out) == (2, "")
    assert "statistic 'sizes' raised ZeroDivisionError: by nought" in answer.err


GUEST = """
from dataclasses import dataclass
from fairprune_framework.api import ArchitectureAdapter, UserError

print("imported")

@dataclass(frozen=True, kw_only=True)
class Guest(ArchitectureAdapter):
    def sites(self, model):
        print("asked")
        {raising}

    def tap(self, model, sites, taps, handler):
        raise AssertionError
"""


@pytest.mark.parametrize("raising", ["raise SystemExit(0)", "raise UserError('not mine')", "return None", "return ['a']"])
def test_an_adapter_that_nobody_asked_for_disturbs_no_command(
    raising: str, fairprune: Any, finished: Path, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked whether it knows the model, prints, and misbehaves: others know it."""
    (tmp_path / "guest_plugin.py").write_text(GUEST.replace("{raising}", raising))
    monkeypatch.syspath_prepend(str(tmp_path))
    known = list(discovery.offers())
    point = metadata.EntryPoint("guest", "guest_plugin:Guest", discovery.GROUPS["architecture"])
    monkeypatch.setattr(discovery, "offers", lambda: [(point, "guests", "1"), *known])
    run = shutil.copytree(finished, tmp_path / "run")
    unit = json.loads((run / "plan.json").read_text())["sites"]
    site, units = next((site, units) for site, units in unit.items() if units)
    asked = set()
    for words in (
        ("doctor", llama, "--json"),
        ("inspect", run, "--unit", f"{site}:{units[0]}", "--json"),
        ("restore", run, "--output", tmp_path / "part", "--neuron", f"{site}:{units[0]}", "--json"),
        ("restore", run, "--output", tmp_path / "whole", "--json"),
        ("export", run, "--format", "hf", "--output", tmp_path / "exported", "--json"),
        (
            "finetune",
            run,
            "--distill",
            "--method",
            "full",
            "--steps",
            "1",
            "--batch-tokens",
            "32",
            "--perplexity-only",
            "--json",
        ),
        ("report", run, "--json"),
        ("plugins", "list", "--load", "--json"),
    ):
        answer = fairprune(*words)
        assert answer.code == 0, (words, answer.err)
        assert json.loads(answer.out)
        if "asked" in answer.errors:
            asked.add(words[0])
        sys.modules.pop("guest_plugin", None)
    assert {"doctor", "inspect", "restore"} <= asked


def test_what_ends_the_interpreter_elsewhere_in_a_plugin_is_blamed_on_it(
    fairprune: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class that acts when it is looked at: nobody calls a method of it, and it is named all the same."""
    (tmp_path / "sly_plugin.py").write_text(
        "from dataclasses import dataclass, field\n"
        "from fairprune_framework.api import BiasScorer\n"
        "def leave():\n"
        "    raise SystemExit(0)\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Sly(BiasScorer):\n"
        "    options: list = field(default_factory=leave)\n"
        "    def score(self, at):\n"
        "        return None\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    known = list(discovery.offers())
    point = metadata.EntryPoint("sly", "sly_plugin:Sly", discovery.GROUPS["bias"])
    monkeypatch.setattr(discovery, "offers", lambda: [*known, (point, "toys", "1")])
    answer = fairprune("plugins", "show", "sly", "--json")
    sys.modules.pop("sly_plugin", None)
    assert (answer.code, answer.out) == (2, "")
    assert answer.errors == [
        "fairprune: error: bias 'sly' of toys 1 raised SystemExit: 0 (cause: SystemExit; FAIRPRUNE_DEBUG=1 shows the traceback)"
    ]
