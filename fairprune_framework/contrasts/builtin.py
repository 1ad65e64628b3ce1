"""The prompt sets that ship with this package, `builtin:<name>`: one YAML file of values and templates for each.

The ids of a set are led by its language, the part of the name before the first hyphen: `en-1` is the first set that was written, and
stays as it is.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from fairprune_framework.contrasts import build, formats, templates
from fairprune_framework.contrasts.schema import Contrast
from fairprune_framework.errors import UnknownName, did_you_mean


def names() -> list[str]:
    """The sets that are built in, sorted.

    >>> names()
    ['en', 'en-1']
    """
    folder = resources.files(__package__) / "data"
    return sorted(Path(file.name).stem for file in folder.iterdir() if file.name.endswith(".yaml"))


def builtin(name: str) -> list[Contrast]:
    """Build one set: the same crossing as `fairprune prompts build`.

    >>> builtin("en-1")[0].id
    'en/race-ethnicity/hiring-1'

    Raises:
        UnknownName: no such set.
    """
    known = names()
    if name not in known:
        raise UnknownName(f"no built-in prompt set {name!r}; there are: {', '.join(known)}.{did_you_mean(name, known)}")
    with resources.as_file(resources.files(__package__) / "data" / f"{name}.yaml") as path:
        content = formats.document(path)
    where = f"builtin:{name}"
    values = templates.values_of(content["values"], where)
    return build.cross(templates.templates_of(content["templates"], where), values, prefix=f"{name.partition('-')[0]}/")
