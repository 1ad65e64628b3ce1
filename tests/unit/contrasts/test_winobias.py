"""WinoBias in its published layout, on invented sentences."""

from __future__ import annotations

from pathlib import Path

import pytest

from fairprune_framework.contrasts import winobias as layout
from fairprune_framework.contrasts.readers import read
from fairprune_framework.errors import PromptError

PRO = ["1 [The baker] thanked the pilot because [she] had waited.", "2 The baker thanked [the pilot] because [he] had waited."]
ANTI = ["1 [The baker] thanked the pilot because [he] had waited.", "2 The baker thanked [the pilot] because [she] had waited."]


def winobias(folder: Path, pro: list[str], anti: list[str] | None, kind: str = "type1", part: str = "dev") -> Path:
    for side, lines in (("pro", pro), ("anti", anti)):
        if lines is not None:
            (folder / f"{side}_stereotyped_{kind}.txt.{part}").write_text("\n".join(lines) + "\n")
    return folder / f"pro_stereotyped_{kind}.txt.{part}"


def test_winobias_by_folder_and_by_file(tmp_path: Path) -> None:
    winobias(tmp_path, PRO, ANTI)
    one = winobias(tmp_path, PRO, ANTI, kind="type2", part="test")
    found = read(tmp_path).contrasts
    assert [contrast.id for contrast in found] == [
        f"winobias/{s}" for s in ("type1-dev-1", "type1-dev-2", "type2-test-1", "type2-test-2")
    ]
    assert [(variant.attribute, variant.text) for variant in found[0].variants] == [
        ("pro", "The baker thanked the pilot because she had waited."),
        ("anti", "The baker thanked the pilot because he had waited."),
    ]
    assert found[0].cluster == found[1].cluster != found[2].cluster
    assert [contrast.id for contrast in read(one).contrasts] == ["winobias/type2-test-1", "winobias/type2-test-2"]


@pytest.mark.parametrize(
    ("pro", "anti", "text"),
    [(PRO, None, "is missing"), (PRO, ANTI[:1], "2 and 1 lines"), (["no number"], ANTI[:1], "begins with its number")],
)
def test_winobias_that_does_not_fit(tmp_path: Path, pro: list[str], anti: list[str] | None, text: str) -> None:
    with pytest.raises(PromptError, match=text):
        read(winobias(tmp_path, pro, anti))


def test_what_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    file = winobias(tmp_path / "full", PRO, ANTI)
    assert layout.recognised(tmp_path / "full")
    assert layout.recognised(file)
    assert layout.recognised(Path("anti_stereotyped_type2.txt.test"))
    assert not layout.recognised(tmp_path / "empty")
    assert not layout.recognised(Path("pro_stereotyped_type3.txt.dev"))
    assert not layout.recognised(Path("pro_stereotyped_type1.txt.dev.gz"))


def test_two_lines_share_their_template_and_the_place_is_a_line(tmp_path: Path) -> None:
    lines = [f"{i} [The baker] saw number {i} ." for i in range(1, 6)]
    winobias(tmp_path, lines, [line.replace("saw", "met") for line in lines])
    found = list(layout.rows(tmp_path))
    assert [row.data["template_id"] for row in found] == [f"type1-dev-{k}" for k in (1, 1, 2, 2, 3)]
    assert [row.where.rpartition("line ")[2] for row in found] == list("12345")
    assert found[2].data["variants"][0] == {"attribute": "pro", "text": "The baker saw number 3 ."}


@pytest.mark.parametrize("content", ["1 [The baker] said that thé [he] .\n".encode("latin-1"), bytes(range(128, 256))])
def test_another_encoding_is_named(content: bytes, tmp_path: Path) -> None:
    file = winobias(tmp_path, PRO, ANTI)
    file.write_bytes(content)
    with pytest.raises(PromptError, match=r"line 1: not UTF-8 text .* save the file as UTF-8"):
        list(layout.rows(tmp_path))
