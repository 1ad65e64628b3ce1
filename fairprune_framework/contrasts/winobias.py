"""WinoBias as it is published: line i of `pro_*` and line i of `anti_*` are the two sides of one contrast.

The two sentences differ in the pronoun alone: `pro` is the one that agrees with the stereotype of the occupation. Lines 2k - 1 and 2k are
about the same two occupations, so that they share a template. Source: Zhao et al. 2018, arXiv 1804.06876.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fairprune_framework.contrasts.formats import Row, text_lines
from fairprune_framework.errors import PromptError

_FILE = re.compile(r"(?P<side>pro|anti)_stereotyped_(?P<kind>type[12])\.txt\.(?P<part>dev|test)")
_LINE = re.compile(r"\s*\d+\s+(?P<text>.*\S)\s*")


def recognised(path: Path) -> bool:
    """The path is a WinoBias file, or a folder that holds one."""
    if path.is_dir():
        return any(_FILE.fullmatch(child.name) for child in path.iterdir())
    return _FILE.fullmatch(path.name) is not None


@dataclass(frozen=True, kw_only=True)
class Line:
    """Line i of both sides of a file."""

    where: str
    part: str
    """`type1-dev` and the like."""
    line: int
    pro: str
    """With its brackets: `[The developer] argued with the designer because [he] ...`."""
    anti: str

    @property
    def template_id(self) -> str:
        """Of lines 2k - 1 and 2k, which are about the same two occupations."""
        return f"{self.part}-{(self.line + 1) // 2}"


def bare(marked: str) -> str:
    """The sentence without its brackets.

    >>> bare("[The nurse] said that [she] was late.")
    'The nurse said that she was late.'
    """
    return re.sub(r"[\[\]]", "", marked)


def lines(path: Path) -> Iterator[Line]:
    """The lines of a folder with any of the files, or of one file and its counterpart.

    Raises:
        PromptError: a file without its counterpart, or with another number of lines; a line without a number or that is not UTF-8.
    """
    names = [child.name for child in path.iterdir()] if path.is_dir() else [path.name]
    folder = path if path.is_dir() else path.parent
    found = {(match["part"], match["kind"]) for name in names if (match := _FILE.fullmatch(name))}
    for part, kind in sorted(found):
        sides = {}
        for side in ("pro", "anti"):
            file = folder / f"{side}_stereotyped_{kind}.txt.{part}"
            if not file.is_file():
                raise PromptError(f"WinoBias needs both sides: {file} is missing")
            sides[side] = _sentences(file)
        if len(sides["pro"]) != len(sides["anti"]):
            raise PromptError(
                f"the files of WinoBias {kind} {part} in {folder} have {len(sides['pro'])} and {len(sides['anti'])} lines: "
                "line i of both must belong together"
            )
        for line, (pro, anti) in enumerate(zip(sides["pro"], sides["anti"], strict=True), start=1):
            where = f"{folder}/pro_stereotyped_{kind}.txt.{part}, line {line}"
            yield Line(where=where, part=f"{kind}-{part}", line=line, pro=pro, anti=anti)


def rows(path: Path) -> Iterator[Row]:
    """Rows as `records.to_contrast` takes them; raises as `lines`."""
    for number, one in enumerate(lines(path), start=1):
        data = {
            "id": f"winobias/{one.part}-{one.line}",
            "category": "gender",
            "template_id": one.template_id,
            "context": one.part,
            "variants": [{"attribute": "pro", "text": bare(one.pro)}, {"attribute": "anti", "text": bare(one.anti)}],
        }
        yield Row(where=one.where, number=number, data=data)


def _sentences(file: Path) -> list[str]:
    sentences = []
    for number, line in text_lines(file):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise PromptError(f"{file}, line {number}: a line of WinoBias begins with its number")
        sentences.append(match["text"])
    return sentences
