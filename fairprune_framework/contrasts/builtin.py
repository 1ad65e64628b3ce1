"""The prompt sets that ship with this package, `builtin:<language>`: one YAML file of values and templates for each."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from fairprune_framework.contrasts import build, formats
from fairprune_framework.contrasts.schema import Contrast
from fairprune_framework.errors import UnknownName, did_you_mean


def names() -> list[str]:
    """The languages that are built in, sorted.

    >>> names()
    ['en']
    """
    folder = resources.files(__package__) / "data"
    return sorted(Path(file.name).stem for file in folder.iterdir() if file.name.endswith(".yaml"))


def builtin(name: str) -> list[Contrast]:
    """Build the set of one language: the same crossing as `fairprune prompts build`, ids led by the language.

    >>> builtin("en")[0].id
    'en/race-ethnicity/hiring-1'

    Raises:
        UnknownName: no such language.
    """
    known = names()
    if name not in known:
        raise UnknownName(f"no built-in prompt set {name!r}; there are: {', '.join(known)}.{did_you_mean(name, known)}")
    with resources.as_file(resources.files(__package__) / "data" / f"{name}.yaml") as path:
        content = formats.document(path)
    where = f"builtin:{name}"
    templates = build.templates_of(content["templates"], where)
    return build.cross(templates, build.values_of(content["values"], where), prefix=f"{name}/")
