"""The table of commands: every module of the package is in it, and every command can be found, explained and dispatched."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Any

import pytest

import fairprune_framework.cli
from fairprune_framework.cli.command import Command, Group
from fairprune_framework.cli.main import MODULES, build_parser, collect, main

PARTS = {"__init__", "main", "command", "options"}
"""Modules of the package that are no command."""


def test_every_module_is_in_the_table() -> None:
    folder = Path(fairprune_framework.cli.__file__).parent
    assert {file.stem for file in folder.glob("*.py")} == PARTS | set(MODULES)
    assert len(MODULES) == len(set(MODULES))


def test_titles_are_unique_and_helped() -> None:
    titles = [command.title for command in collect()]
    assert len(titles) == len(set(titles)) > 20
    assert {"run", "prompts check", "plugins check", "ask causal"} <= set(titles)
    assert all(command.help for command in collect())


def test_options_of_each_first_word_are_known() -> None:
    _, known = build_parser(collect())
    assert set(known) == {command.title.split()[0] for command in collect()}
    assert {"--draws", "--replicates", "--json"} <= set(known["ask"])


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What two commands are given: `go`, which takes options of plugins, and `lot one`, which does not."""
    calls: list[Any] = []

    def add(parser: Any) -> None:
        parser.add_argument("--some-thing", type=int)

    def run(values: dict[str, Any]) -> int:
        calls.append(values)
        return 7

    commands = (
        Command(name="go", help="goes", add_options=add, run=run, plugin_options=True),
        Command(name="one", help="one of them", add_options=add, run=run, group=Group(name="lot", help="several")),
    )
    monkeypatch.setattr(sys.modules[main.__module__], "collect", lambda: commands)
    return calls


def test_a_command_gets_what_was_given_and_its_code_is_the_exit_code(seen: list[Any]) -> None:
    assert main(["go", "--some-thing", "-3", "--bias.relative", "true"]) == 7
    assert main(["lot", "one", "--some-thing", "4"]) == 7
    assert [{name: value for name, value in values.items() if value is not None} for values in seen] == [
        {"some_thing": -3, "bias.relative": True},
        {"some_thing": 4},
    ]


def test_options_of_plugins_are_refused_where_they_mean_nothing(seen: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lot", "one", "--bias.relative", "true"]) == 2
    assert capsys.readouterr().err == "fairprune: error: `fairprune lot one` has no option --bias.relative\n"
    assert seen == []


def test_a_group_alone_shows_its_commands(seen: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["lot"])
    assert stop.value.code == 0
    assert "one of them" in capsys.readouterr().out


def test_a_wrong_word_is_named_with_its_neighbour(seen: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["goo"]) == 2
    assert "no command 'goo'. Did you mean 'go'?" in capsys.readouterr().err
    assert main(["go", "--some-thin", "3"]) == 2
    assert "Did you mean '--some-thing'?" in capsys.readouterr().err


def test_a_file_without_permission_is_bad_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With its name; other failures of the system are not the user's."""

    def run(values: dict[str, Any]) -> int:
        raise (
            PermissionError(errno.EACCES, "no", "a/b.json") if values.get("denied") else OSError(errno.EIO, "no", "a/b.json")
        )

    def add(parser: Any) -> None:
        parser.add_argument("--denied", action="store_true")

    commands = (Command(name="go", help="goes", add_options=add, run=run),)
    monkeypatch.setattr(sys.modules[main.__module__], "collect", lambda: commands)
    monkeypatch.delenv("FAIRPRUNE_DEBUG", raising=False)
    assert main(["go", "--denied"]) == 2
    assert capsys.readouterr().err == "fairprune: error: no permission to read or write a/b.json\n"
    assert main(["go"]) == 1
    assert "FAIRPRUNE_DEBUG=1 shows the traceback" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["doctor"], ["report"], ["inspect"], ["ablate"], ["run"], ["prompts", "check"], ["restore"]])
def test_a_name_that_is_too_long_is_bad_input(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whichever command is the first to look for it."""
    options = {
        "inspect": ["--unit", "0:1"],
        "ablate": ["--output", str(tmp_path / "out")],
        "restore": ["--output", str(tmp_path / "out")],
    }
    options["prompts"] = ["--model", "smollm2-135m"]
    options["run"] = ["--prompts", "builtin:en-small", "--output", str(tmp_path / "out")]
    assert main([*words, str(tmp_path / ("n" * 300)), *options.get(words[0], [])]) == 2
    said = capsys.readouterr().err
    assert said.startswith("fairprune: error: ")
    assert "nnnn" in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()
