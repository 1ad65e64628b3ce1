"""Discovery by entry points, on distributions that exist only in these tests."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import pytest

from fairprune_framework import discovery
from fairprune_framework.api.interfaces import BiasScorer, ImportanceScorer, Needs
from fairprune_framework.errors import AmbiguousName, BrokenPlugin, PluginError, UnknownName, UserError

BIAS = "fairprune.bias_scorers"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toy(BiasScorer):
    """A scorer with options of several types."""

    share: float = 0.5
    how: Literal["mean", "max"] = "mean"
    layers: tuple[int, ...] = ()
    maybe: int | None = None

    def __post_init__(self) -> None:
        if self.share > 1:
            raise ValueError("The 'share' must be at most 1.")

    def score(self, at: Any) -> Any:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Strict(Toy):
    needed: int
    named: str | None = None


@dataclasses.dataclass(kw_only=True)
class Thawed(BiasScorer):
    def score(self, at: Any) -> Any:
        raise NotImplementedError


class Bare(BiasScorer):
    def score(self, at: Any) -> Any:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unfinished(BiasScorer):
    pass


@dataclasses.dataclass(frozen=True, kw_only=True)
class Future(Toy):
    api_version = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanting(Toy):
    def needs(self) -> Any:
        raise RuntimeError("of what")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leaving(Toy):
    def needs(self) -> Any:
        raise SystemExit(5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeavingAtOnce(Toy):
    def __post_init__(self) -> None:
        raise SystemExit(6)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mapped(Toy):
    def needs(self) -> Any:
        return {"weights": True}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Talking(Toy):
    def __post_init__(self) -> None:
        print("made")

    def needs(self) -> Needs:
        print("asked")
        return Needs()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Other(ImportanceScorer):
    def score(self, at: Any) -> Any:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hints(Toy):
    odd: NoSuchName = 0  # type: ignore[name-defined]  # noqa: F821


Install = Callable[[Sequence[tuple[str, str, str]]], None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Replace all installed bias scorers by (distribution, name, value)."""
    module = types.ModuleType("toys")
    for thing in (
        Toy,
        Strict,
        Thawed,
        Bare,
        Unfinished,
        Future,
        Wanting,
        Leaving,
        LeavingAtOnce,
        Mapped,
        Talking,
        Other,
        Hints,
    ):
        setattr(module, thing.__name__, thing)
    monkeypatch.setitem(sys.modules, "toys", module)
    # `Hints` looks its names up in its own module
    monkeypatch.setattr(Hints, "__module__", __name__)

    def put(offers: Sequence[tuple[str, str, str]]) -> None:
        def found() -> list[Any]:
            return [(metadata.EntryPoint(name, value, BIAS), distribution, "1.2") for distribution, name, value in offers]

        monkeypatch.setattr(discovery, "offers", found)

    return put


def test_with_no_entry_points_the_lists_are_empty(install: Install) -> None:
    install([])
    assert [discovery.entries(kind) for kind in (*discovery.GROUPS, "recipe")] == [[]] * 5
    with pytest.raises(UnknownName, match=r"no bias named 'variance'. Installed: none."):
        discovery.build("bias", "variance")


def test_found_and_made(install: Install) -> None:
    install([("their-plugins", "toy", "toys:Toy")])
    (entry,) = discovery.entries("bias")
    assert (entry.name, entry.distribution, entry.version) == ("toy", "their-plugins", "1.2")
    found = discovery.build("bias", "toy", {"share": 0.25, "how": "max", "layers": [1, 2]})
    assert found == Toy(share=0.25, how="max", layers=(1, 2))
    assert discovery.options_of(found) == {"share": 0.25, "how": "max", "layers": (1, 2), "maybe": None}


def test_listing_imports_nothing(install: Install) -> None:
    install([("a", "toy", "no_such_module:Toy")])
    assert [entry.name for entry in discovery.entries("bias")] == ["toy"]
    assert "no_such_module" not in sys.modules


@pytest.fixture
def crowded(tmp_path: Path) -> Path:
    """Sixty distributions with a plugin that must not be imported, as many without, and what is wrong in some way."""
    for number in range(120):
        info = tmp_path / f"made_up_{number}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: made-up-{number}\nVersion: 1.0\n")
        if number < 60:
            (info / "entry_points.txt").write_text(f"[{BIAS}]\nmade-up-{number} = made_up_{number}:Score\n")
            (tmp_path / f"made_up_{number}.py").write_text("raise RuntimeError('imported')\n")
    bare = tmp_path / "bare-1.0.dist-info"
    bare.mkdir()
    (bare / "entry_points.txt").write_text(f"[{BIAS}]\nbare = bare:Score\n")
    return tmp_path


def test_listing_many_imports_nothing_and_reads_each_file_once(crowded: Path) -> None:
    counting = """
import collections, importlib.metadata as metadata, sys
read = collections.Counter()
known = metadata.PathDistribution.read_text
def counted(self, name):
    read[str(self._path), name] += 1
    return known(self, name)
metadata.PathDistribution.read_text = counted
from fairprune_framework.cli import main
assert main(["plugins", "list"]) == 0
own = [module for module in sys.modules if module.partition(".")[0] in ("torch", "transformers", "lightning", "numpy")]
own += [module for module in sys.modules if module.startswith(("made_up", "fairprune_")) and not module.startswith("fairprune_framework")]
metadata_read = {path for path, name in read if name == "METADATA"}
print("modules", own)
twice = [key for key, count in read.items() if count > 1 and (key[1] == "entry_points.txt" or "made_up_" in key[0])]
print("read twice", twice)
made_up = [int(path.split("made_up_")[1].split("-")[0]) for path in metadata_read if "made_up_" in path]
print("metadata of those without a plugin", [number for number in made_up if number >= 60])
"""
    words = {**os.environ, "PYTHONPATH": os.pathsep.join([str(crowded), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", counting], env=words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert sum("made-up-" in line for line in done.stdout.splitlines()) == 60
    assert done.stdout.splitlines()[-3:] == ["modules []", "read twice []", "metadata of those without a plugin []"]
    (bare,) = [line.split() for line in done.stdout.splitlines() if " bare " in line]
    assert bare == ["bias", "bare", "unknown", "0", "not", "loaded"]


@pytest.mark.parametrize("text", [f"[{BIAS}]\nno value\n", "nothing\n", f"[{BIAS}]\nodd = !:\n= :\n", "\x00[\n"])
def test_entry_points_that_cannot_be_read_hide_no_others(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {kind: [entry.label for entry in discovery.entries(kind)] for kind in discovery.GROUPS}
    odd = tmp_path / "odd-1.0.dist-info"
    odd.mkdir()
    (odd / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1.0\n")
    (odd / "entry_points.txt").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    for kind, labels in known.items():
        assert [entry.label for entry in discovery.entries(kind) if entry.distribution != "odd"] == labels
    for entry in discovery.entries("bias"):
        if entry.distribution == "odd":
            with pytest.raises(BrokenPlugin):
                discovery.load(entry)


def test_two_distributions_with_one_name(install: Install) -> None:
    install([("one", "toy", "toys:Toy"), ("The_Other", "toy", "toys:Strict")])
    with pytest.raises(AmbiguousName, match="The_Other:toy and one:toy"):
        discovery.find("bias", "toy")
    assert discovery.find("bias", "one:toy").value == "toys:Toy"
    assert discovery.find("bias", "the-other:toy").value == "toys:Strict"
    with pytest.raises(UnknownName):
        discovery.find("bias", "third:toy")


def test_the_same_distribution_twice_on_the_path_is_one(install: Install) -> None:
    install([("a-b", "toy", "toys:Toy"), ("a_b", "toy", "toys:Strict")])
    assert discovery.find("bias", "toy").value == "toys:Toy"


def test_did_you_mean(install: Install) -> None:
    install([("a", "variance", "toys:Toy")])
    with pytest.raises(UnknownName, match="Did you mean 'variance'"):
        discovery.find("bias", "varience")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("no_such_module:Toy", "ModuleNotFoundError"),
        ("toys:Missing", "AttributeError"),
        ("toys:Other", "is not a subclass of BiasScorer"),
        ("toys", "is not a subclass of BiasScorer"),
        ("toys:Future", "written for interface version 2; this is version 1"),
        ("toys:Bare", "must be a frozen, keyword-only dataclass"),
        ("toys:Thawed", "must be a frozen, keyword-only dataclass"),
    ],
)
def test_broken_plugins_raise_when_used_and_break_no_other(install: Install, value: str, expected: str) -> None:
    install([("bad", "shaky", value), ("good", "toy", "toys:Toy")])
    assert isinstance(discovery.build("bias", "toy"), Toy)
    with pytest.raises(BrokenPlugin, match=r"bias 'shaky' of bad 1\.2") as caught:
        discovery.build("bias", "shaky")
    assert expected in str(caught.value)
    if "Error" in expected:
        assert caught.value.__cause__ is not None


def test_plugins_that_cannot_be_made(install: Install) -> None:
    install([("bad", "unfinished", "toys:Unfinished"), ("bad", "hints", "toys:Hints"), ("bad", "wanting", "toys:Wanting")])
    with pytest.raises(BrokenPlugin, match=r"needs\(\) raised RuntimeError: of what"):
        discovery.build("bias", "wanting")
    with pytest.raises(BrokenPlugin, match="making it raised TypeError"):
        discovery.build("bias", "unfinished")
    with pytest.raises(BrokenPlugin, match="annotations cannot be read: NameError"):
        discovery.build("bias", "hints")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Leaving", "needs() raised SystemExit: 5"),
        ("LeavingAtOnce", "making it raised SystemExit: 6"),
        ("Mapped", "needs() must return Needs. Got {'weights': True} instead."),
    ],
)
def test_plugins_that_end_the_interpreter_or_need_nonsense(name: str, words: str, install: Install) -> None:
    install([("bad", "it", f"toys:{name}")])
    with pytest.raises(PluginError, match=re.escape(words)):
        discovery.build("bias", "it")


def test_what_a_plugin_prints_as_it_is_made_is_no_part_of_an_answer(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install([("a", "talking", "toys:Talking")])
    discovery.build("bias", "talking")
    assert capsys.readouterr() == ("", "made\nasked\n")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"shaer": 1}, "has no option 'shaer'. Did you mean 'share'? Its options: share, how, layers, maybe."),
        ({"share": "x"}, "The 'share' option of bias 'toy' of a 1.2 must be a number. Got 'x' instead."),
        ({"share": 2}, "The 'share' must be at most 1."),
        ({"how": "median"}, "must be one of mean, max. Got 'median' instead."),
        ({"layers": ["x"]}, "must be a list, each a whole number"),
        ({"maybe": "x"}, "must be a whole number"),
    ],
)
def test_options_are_checked(install: Install, options: dict[str, Any], expected: str) -> None:
    install([("a", "toy", "toys:Toy")])
    with pytest.raises(UserError) as caught:
        discovery.build("bias", "toy", options)
    assert expected in str(caught.value)


def test_options_that_are_needed(install: Install) -> None:
    install([("a", "strict", "toys:Strict")])
    with pytest.raises(UserError, match="needs the option 'needed'"):
        discovery.build("bias", "strict")
    assert discovery.build("bias", "strict", {"needed": 3}) == Strict(needed=3)
    assert discovery.build("bias", "strict", {"needed": 3, "named": "3"}) == Strict(needed=3, named="3")
    with pytest.raises(UserError) as caught:
        discovery.build("bias", "strict", {"needed": 3, "named": 3})
    assert str(caught.value) == (
        "The 'named' option of bias 'strict' of a 1.2 must be a string. Got 3 instead. In two pairs of quotes it is text: '\"...\"'."
    )


def test_a_module_that_prints_and_exits_is_broken_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "exits_at_import.py").write_text("print('hello')\nraise SystemExit(3)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    entry = discovery.Entry(kind="bias", name="exits", distribution="d", version="1", value="exits_at_import:Any")
    with pytest.raises(BrokenPlugin, match="cannot be loaded from exits_at_import:Any: SystemExit: 3"):
        discovery.load(entry)
    assert capsys.readouterr() == ("", "hello\n")
