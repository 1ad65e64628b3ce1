"""Calibration text that ships, one `<language>.jsonl` each, and the name by which a recipe asks for it."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from fairprune_framework.errors import UnknownName, did_you_mean

BUILTIN = "builtin:"


def text_file(name: str) -> Path:
    """The file of calibration text that `builtin:<language>` names; any other name is a path.

    Raises:
        UnknownName: no text ships for the language.
    """
    if not name.startswith(BUILTIN):
        return Path(name)
    folder = resources.files(__package__)
    known = {Path(file.name).stem: Path(str(file)) for file in folder.iterdir() if file.name.endswith(".jsonl")}
    language = name.removeprefix(BUILTIN)
    if language not in known:
        there = ", ".join(sorted(known))
        raise UnknownName(f"no built-in calibration text {language!r}; there are: {there}.{did_you_mean(language, known)}")
    return known[language]
