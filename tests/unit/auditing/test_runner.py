"""Loggers of `--log`, by name and by import path; what cannot be made is one clear line."""

from __future__ import annotations

from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger

from fairprune_framework.auditing.runner import loggers_of
from fairprune_framework.errors import UserError


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
