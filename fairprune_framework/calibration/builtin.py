"""Built-in calibration text, one `<language>.jsonl` per language, and its name in recipes."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from fairprune_framework.errors import UnknownName, did_you_mean

BUILTIN = "builtin:"


def text_file(name: str) -> Path:
    """The file of the calibration text `builtin:<language>`; any other name is a path.

    Raises:
        UnknownName: there is no built-in text for the language.
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
