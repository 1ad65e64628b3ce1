"""Files written one tensor at a time are those of safetensors, byte by byte, and are read one tensor at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fairprune_framework.errors import UserError
from fairprune_framework.utilities.tensor_files import DTYPES, TensorFile, write_one_by_one


def test_the_bytes_are_those_of_safetensors(tmp_path: Path) -> None:
    tensors = {f"{str(dtype)[6:]}.é": torch.arange(6).reshape(2, 3).to(dtype) for dtype in DTYPES}
    tensors |= {"empty": torch.zeros(0, 4), "one": torch.tensor(3.5)}
    for number, metadata in enumerate((None, {"format": "pt"})):
        save_file(tensors, tmp_path / f"theirs-{number}", metadata=metadata)
        like = {name: value.to("meta") for name, value in reversed(tensors.items())}
        write_one_by_one(tmp_path / f"ours-{number}", like, tensors.__getitem__, metadata)
        assert (tmp_path / f"ours-{number}").read_bytes() == (tmp_path / f"theirs-{number}").read_bytes()
    found = TensorFile(tmp_path / "ours-1")
    assert found.metadata == {"format": "pt"}
    assert (len(found), set(found)) == (len(tensors), set(tensors))
    assert all(found[name].equal(value) for name, value in tensors.items() if "float8" not in name)
    with pytest.raises(KeyError):
        found["absent"]


def test_a_dtype_that_the_format_lacks_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="x is complex64, which is not written tensor by tensor"):
        write_one_by_one(tmp_path / "x", {"x": torch.zeros(2, dtype=torch.complex64)}, lambda name: torch.zeros(2))
    assert list(tmp_path.iterdir()) == []


def test_what_ends_in_between_leaves_nothing(tmp_path: Path) -> None:
    def read(name: str) -> torch.Tensor:
        if name == "b":
            raise OSError("gone")
        return torch.zeros(2)

    with pytest.raises(OSError, match="gone"):
        write_one_by_one(tmp_path / "x", {"a": torch.zeros(2), "b": torch.zeros(2)}, read)
    assert list(tmp_path.iterdir()) == []
