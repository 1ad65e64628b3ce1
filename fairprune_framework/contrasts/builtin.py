"""The prompt sets that ship with this package, `builtin:<name>`.

A set is `<name>.yaml`, with its values and templates, or a folder `<name>/` of such files, one for each kind of contrast. A file with
`part_of` and `contrasts` is a part of another set: the ids that it takes. One with `extends` is that set, and then its own contrasts. The
ids of a set are led by its language, the part of the name before the first hyphen: `en-1` is the first set that was written, and stays as
it is.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib import resources
from pathlib import Path
from typing import Any

from fairprune_framework.contrasts import build, formats, templates
from fairprune_framework.contrasts.schema import Contrast
from fairprune_framework.errors import UnknownName, did_you_mean


def names() -> list[str]:
    """The sets that are built in, sorted.

    >>> names()
    ['en', 'en-1', 'en-2', 'en-small', 'en-wide', 'es']
    """
    with _data() as folder:
        return sorted(path.stem for path in folder.iterdir() if path.is_dir() or path.suffix == ".yaml")


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
    language, where = name.partition("-")[0], f"builtin:{name}"
    content = _content(name)
    if "part_of" in content:
        whole = {contrast.id: contrast for contrast in builtin(content["part_of"])}
        return [whole[f"{language}/{identity}"] for identity in content["contrasts"]]
    base = builtin(content["extends"]) if "extends" in content else []
    found = templates.templates_of(content["templates"], where)
    return base + build.cross(found, templates.values_of(content["values"], where), prefix=f"{language}/")


def _content(name: str) -> dict[str, Any]:
    """What a file holds, or all files of a folder together."""
    with _data() as data:
        folder = data / name
        files = sorted(folder.glob("*.yaml")) if folder.is_dir() else [data / f"{name}.yaml"]
        found: dict[str, Any] = {}
        for file in files:
            for part, content in formats.document(file).items():
                if not isinstance(content, dict):
                    found[part] = content
                    continue
                known = found.setdefault(part, {})
                assert not known.keys() & content.keys(), f"{file} repeats a category"
                known.update(content)
        return found


def _data() -> AbstractContextManager[Path]:
    return resources.as_file(resources.files(__package__) / "data")
