"""Loggers of `--log`, by name and by import path; what cannot be made is one clear line."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import load_file

from fairprune_framework.auditing import runner
from fairprune_framework.auditing.runner import cannot_compile, loggers_of, made_ahead
from fairprune_framework.errors import UserError


def test_items_are_made_one_ahead_in_their_order_and_what_making_them_raises_is_raised() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(4):
            made.append(number)
            yield number
        raise ValueError("the set ends badly")

    taken: list[int] = []
    with pytest.raises(ValueError, match="the set ends badly"):
        for number in made_ahead(items()):
            taken.append(number)
            assert len(made) <= len(taken) + 1
    assert taken == [0, 1, 2, 3] == made
    assert list(made_ahead(iter(()))) == []


def test_who_stops_early_leaves_no_thread() -> None:
    before = threading.active_count()
    stream = made_ahead(iter(range(100)))
    assert next(stream) == 0
    stream.close()
    assert threading.active_count() == before


class NoFolder:
    """A class that is no logger: it takes no `save_dir`."""


@pytest.mark.parametrize("name", ["csv", "lightning.pytorch.loggers.CSVLogger", "lightning.pytorch.loggers:CSVLogger"])
def test_a_logger_by_name_or_path(name: str, tmp_path: Path) -> None:
    (logger,) = loggers_of(name, tmp_path)
    assert isinstance(logger, CSVLogger)
    assert Path(logger.save_dir) == tmp_path / "logs"
    assert loggers_of(None, tmp_path) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("wrong", "--log must be csv, tensorboard or the import path of a Lightning logger. Got 'wrong' instead."),
        ("no.such.module.Logger", "'no.such.module.Logger': ModuleNotFoundError: "),
        ("lightning.pytorch.loggers.Absent", "'lightning.pytorch.loggers.Absent': AttributeError: "),
        (f"{__name__}.NoFolder", "NoFolder' is none."),
    ],
)
def test_a_logger_that_cannot_be_made(name: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        loggers_of(name, tmp_path)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def audited(fairprune: Any, llama: Path, prompts: Path, folder: Path, *more: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """What the command said, and the sums of the audit."""
    answer = fairprune("audit", llama, "--prompts", prompts, "--output", folder, "--recipe", "variance", *more)
    assert answer.code == 0, answer.err
    return answer, load_file(folder / "statistics.safetensors")


def test_a_compiled_trunk_gives_the_same_sums(
    fairprune: Any, llama: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled by a backend that needs no C++ compiler."""
    compiled: list[Any] = []
    compile = torch.compile

    def watched(function: Any) -> Any:
        compiled.append(function)
        return compile(function, backend="eager")

    _, expected = audited(fairprune, llama, prompts, tmp_path / "plain")
    assert not compiled
    monkeypatch.setattr(torch, "compile", watched)
    answer, found = audited(fairprune, llama, prompts, tmp_path / "compiled", "--compile")
    assert [type(each).__name__ for each in compiled][1:] == ["LlamaModel"]
    assert "goes on without it" not in answer.err
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-7)


def test_a_compile_that_fails_is_one_line_and_the_audit_goes_on(
    fairprune: Any, llama: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(function: Any) -> Any:
        raise RuntimeError("no compiler\nwas found")

    _, expected = audited(fairprune, llama, prompts, tmp_path / "plain")
    monkeypatch.setattr(torch, "compile", broken)
    answer, found = audited(fairprune, llama, prompts, tmp_path / "compiled", "--compile")
    line = "--compile: torch.compile fails here (RuntimeError: no compiler was found); the audit goes on without it"
    assert answer.err.count(line) == 1
    assert all(found[name].equal(value) for name, value in expected.items())
    assert cannot_compile() == "RuntimeError: no compiler was found"


def test_micro_batches_made_ahead_give_the_same_bits(
    fairprune: Any, llama: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on an accelerator, where the next micro-batch is laid out in a thread."""
    _, expected = audited(fairprune, llama, prompts, tmp_path / "one", "--micro-batch-tokens", "64")
    threads: set[str] = set()

    def ahead(stream: Any) -> Iterator[Any]:
        def seen() -> Iterator[Any]:
            for batch in stream.make():
                threads.add(threading.current_thread().name)
                yield batch

        return made_ahead(seen())

    monkeypatch.setattr(runner._Stream, "__iter__", ahead)
    _, found = audited(fairprune, llama, prompts, tmp_path / "two", "--micro-batch-tokens", "64")
    assert all(name.startswith("micro-batches") for name in threads)
    assert threads
    assert found.keys() == expected.keys()
    assert all(found[name].equal(value) for name, value in expected.items())
