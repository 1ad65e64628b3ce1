"""Files are written whole or not at all; hashes against hashlib on bytes written by hand."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from fairprune_framework.errors import DiskFull, RunFolderError
from fairprune_framework.utilities.files import (
    atomic,
    digest,
    file_digest,
    parse_json,
    read_json,
    read_tensors,
    refuse_unwritable,
    repr_digest,
    sweep,
    temporary_folder,
    write_json,
    write_tensors,
    write_text,
)


def test_a_digest_is_of_the_canonical_json() -> None:
    expected = hashlib.sha256('{"a":[1,2.5,null],"é":true}'.encode()).hexdigest()
    assert digest({"é": True, "a": (1, 2.5, None)}) == expected


def test_a_repr_digest_is_of_the_tuple_as_python_writes_it() -> None:
    assert repr_digest("a", (1, 2.5), None) == hashlib.sha256(b"('a', (1, 2.5), None)").digest()
    assert repr_digest("ab", "c") != repr_digest("a", "bc")


def test_a_file_digest_is_of_its_bytes(tmp_path: Path) -> None:
    data = bytes(range(256)) * 1000
    (tmp_path / "x").write_bytes(data)
    assert file_digest(tmp_path / "x") == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("durable", [False, True])
def test_the_file_appears_when_the_block_ends(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")
    with atomic(path, durable=durable) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == tmp_path
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["x.txt"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.txt"]


def test_files_are_readable_as_the_umask_allows(tmp_path: Path) -> None:
    """Temporary files are private; what is put in place is not."""
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "x.txt", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "x.txt").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named(tmp_path: Path, code: int) -> None:
    with (
        pytest.raises(DiskFull, match=r"x\.bin could not be written, and nothing half-written was left"),
        atomic(tmp_path / "x.bin"),
    ):
        raise OSError(code, os.strerror(code))
    assert not os.listdir(tmp_path)


def test_another_error_of_the_system_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), atomic(tmp_path / "x.bin"):
        raise PermissionError(errno.EACCES, "no")
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "absent" / "x.txt", "text")


def test_json_there_and_back(tmp_path: Path) -> None:
    data = {"format": "x/1", "text": "né 男", "values": [1, 0.1, None]}
    write_json(tmp_path / "x.json", data)
    assert json.loads((tmp_path / "x.json").read_bytes()) == data
    assert read_json(tmp_path / "x.json", "x/1") == data


def test_nan_is_never_written(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"x": float("nan")})
    assert (tmp_path / "x.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "is missing"),
        ("{", "cannot read"),
        (b"\xff", "cannot read"),
        ("[]", "must hold a JSON object. Got list instead"),
        ('{"format": "y"}', "must be of format 'x/1'. Got 'y' instead"),
        ("{}", "Got None instead"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, content: str | bytes | None, words: str) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RunFolderError) as caught:
        read_json(path, "x/1")
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_tensors_that_are_views_are_written(tmp_path: Path) -> None:
    values = torch.arange(12.0).reshape(3, 4)
    write_tensors(tmp_path / "x.safetensors", {"turned": values.T, "row": values[1]}, metadata={"a": "b"})
    found = load_file(tmp_path / "x.safetensors")
    assert found["turned"].tolist() == values.T.tolist()
    assert found["row"].tolist() == [4.0, 5.0, 6.0, 7.0]


TENSORS = {"b/ü": torch.arange(6.0).reshape(2, 3), "a": torch.tensor([1, 2])}


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    """safetensors alone writes several keys in a random order: of ten files with eight keys, all alike by chance once in 40320 ** 9."""
    metadata = {f"key {number}": 'quote " backslash \\ newline \n umlaut ü \x7f \x01' * number for number in range(8)}
    files = []
    for number in range(10):
        files.append(tmp_path / f"{number}.safetensors")
        write_tensors(files[-1], TENSORS, metadata=dict(reversed(metadata.items())) if number % 2 else metadata)
    assert len({file.read_bytes() for file in files}) == 1
    with safe_open(files[0], framework="pt") as opened:
        assert opened.metadata() == metadata
    read = load_file(files[0])
    assert read.keys() == TENSORS.keys()
    assert all(torch.equal(read[name], value) for name, value in TENSORS.items())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1, "b": {"x": 1, "x": 2}}', "the key 'x' occurs twice"),
        ("[" * 100_000, "nested too deeply"),
        ("9" * 5_000, "4300 digits"),
        ('{"' + "k" * 5_000, "Unterminated string"),
    ],
)
def test_json_of_strangers_is_bounded(text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as found:
        parse_json(text)
    assert len(str(found.value)) <= 500


def test_an_error_of_safetensors_names_the_file(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match=r"x\.safetensors could not be written: I/O error: No such device"),
        atomic(tmp_path / "x.safetensors"),
    ):
        raise SafetensorError("I/O error: No such device")
    with pytest.raises(DiskFull, match=r"x\.safetensors could not be written"), atomic(tmp_path / "x.safetensors"):
        raise SafetensorError(f"I/O error: {os.strerror(errno.ENOSPC)} (os error 28)")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_inside_a_folder_names_the_file_that_did_not_fit(tmp_path: Path) -> None:
    with pytest.raises(DiskFull) as found, temporary_folder(tmp_path / "model") as folder, atomic(folder / "x.bin"):
        raise OSError(errno.ENOSPC, "no space")
    assert str(tmp_path / "model") in str(found.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("x" * 300, "File name too long"),
        ("a\0b", "holds a character that no name may have"),
        ("loop/in", "symbolic links"),
        ("nowhere/in", "is a link to nothing"),
        ("file/in/it", "is a file"),
    ],
)
def test_a_folder_that_cannot_be_made(name: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "nowhere").symlink_to(tmp_path / "absent")
    (tmp_path / "file").touch()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(RunFolderError, match="cannot make the folder") as found:
        refuse_unwritable(tmp_path / name)
    assert said in str(found.value)
    assert sorted(tmp_path.iterdir()) == before
    refuse_unwritable(tmp_path / "new" / "in")


def test_sweeping_takes_unfinished_files_alone_and_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "x").touch()
    made: list[Path] = []
    for target in ("model", "plan.json"):
        with pytest.raises(KeyboardInterrupt), temporary_folder(tmp_path / target) as folder:
            made.append(folder)
            raise KeyboardInterrupt
    made[0].symlink_to(tmp_path / "kept")
    made[1].mkdir()
    (tmp_path / ".notes").touch()
    sweep(tmp_path, "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([".notes", made[1].name, "kept"])
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".notes", "kept"]
    assert (tmp_path / "kept" / "x").exists()
    sweep(tmp_path / "absent")


def test_tensors_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(RunFolderError, match=r"x\.safetensors is missing"):
        read_tensors(path)
    path.write_bytes(b"no tensors")
    with pytest.raises(RunFolderError, match=r"x\.safetensors is damaged"):
        read_tensors(path)
    for value in (float("nan"), float("-inf")):
        save_file({"a": torch.ones(3), "b": torch.tensor([1.0, value])}, path)
        with pytest.raises(RunFolderError, match=r"x\.safetensors is damaged: 'b' holds NaN or Inf"):
            read_tensors(path)
    save_file({"a": torch.ones(3), "n": torch.arange(3)}, path)
    assert read_tensors(path)["n"].tolist() == [0, 1, 2]
