"""What is said of weights that are not there, or that may not be read: that, and not that they are damaged."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from fairprune_framework.errors import FairpruneError, UserError
from fairprune_framework.models.loading import load_model
from fairprune_framework.surgery.restoration import load
from fairprune_framework.utilities.files import read_tensors

NOBODY = 65534


@pytest.fixture
def copied(llama: Path) -> Iterator[Path]:
    """A tiny Llama that may be changed, in a folder that every user may enter."""
    with tempfile.TemporaryDirectory() as root:
        Path(root).chmod(0o755)
        yield Path(shutil.copytree(llama, Path(root) / "model"))


@contextmanager
def closed(path: Path) -> Iterator[None]:
    """Nobody may read a file; a root user becomes another one for as long."""
    path.chmod(0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        path.chmod(0o644)


def said_of(model: Path) -> str:
    with pytest.raises(UserError) as error:
        load_model(str(model))
    text = str(error.value)
    assert "\n" not in text
    assert "damaged" not in text
    return text


def split(model: Path) -> tuple[Path, Path]:
    """Store the weights in two files with an index."""
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    names = sorted(weights)
    files = [model / f"model-0000{part}-of-00002.safetensors" for part in (1, 2)]
    for path, mine in zip(files, (names[::2], names[1::2]), strict=True):
        save_file({name: weights[name] for name in mine}, path, metadata={"format": "pt"})
    places = {name: files[place % 2].name for place, name in enumerate(names)}
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return files[0], files[1]


def test_weights_that_may_not_be_read(copied: Path) -> None:
    path = copied / "model.safetensors"
    with closed(path):
        assert "model.safetensors cannot be read: Permission denied" in said_of(copied)
        for read in (read_tensors, load):
            with pytest.raises(FairpruneError, match=r"model\.safetensors cannot be read: Permission denied"):
                read(path)
    load_model(str(copied))


def test_a_link_to_weights_that_are_gone(copied: Path) -> None:
    path = copied / "model.safetensors"
    path.unlink()
    path.symlink_to("../blobs/gone")
    assert "model.safetensors is a link to ../blobs/gone, which is missing" in said_of(copied)


def test_a_folder_in_the_place_of_weights(copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    (copied / "model.safetensors").mkdir()
    assert "model.safetensors cannot be read: Is a directory" in said_of(copied)


def test_one_of_two_weights_files_is_missing(copied: Path) -> None:
    _, second = split(copied)
    load_model(str(copied))
    second.unlink()
    assert f"{second.name}, which its index names, is missing" in said_of(copied)
