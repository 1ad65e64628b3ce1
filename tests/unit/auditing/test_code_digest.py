"""A checkpoint is bound to the code that its sums come from: all of it, each byte of it."""

from __future__ import annotations

import ast
import importlib
import shutil
import sys
from pathlib import Path

import pytest

import fairprune_framework
from fairprune_framework.auditing.code_digest import SUMMED_BY, class_digest, code_digest, summing_files

PACKAGE = Path(fairprune_framework.__path__[0])
SUMS_NOTHING = {
    "calibration/builtin.py": "a text, whose hash is in the binding",
    "plugin_sources.py": "finds the sources of plugins, which are covered",
    "errors.py": "messages",
    "models/architecture.py": "asks adapters, whose modules are covered; the architecture is in the binding",
    "models/loaded.py": "the model, whose fingerprint is in the binding",
    "models/uneven.py": "stores widths; the model has its fingerprint",
    "models/work.py": "counts what models compute, for run.json",
    "recipes/recipe.py": "options; those that sums depend on are in the binding",
    "utilities/aside.py": "moves what plugins print",
    "utilities/deadline.py": "gives up on a template that does not end",
    "utilities/header_schemas.py": "refuses files, and changes none",
    "utilities/lock.py": "keeps other processes away, and computes nothing",
    "utilities/progress.py": "prints",
    "utilities/schemas.py": "refuses files, and changes none",
    "utilities/__init__.py": "is empty",
    "utilities/stopping.py": "ends a process, and computes nothing",
    "utilities/wording.py": "messages",
}
"""What the covered modules import and no sum depends on, and why."""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name, source in summing_files(PACKAGE).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, tmp_path / name)
    return tmp_path


def test_a_copy_has_the_digest_of_the_package(copy: Path) -> None:
    assert code_digest([], copy) == code_digest([], PACKAGE) == code_digest([])


@pytest.mark.parametrize(
    "name", [*SUMMED_BY, "auditing/distributed/reduce.py", "auditing/accumulation.py", "api/interfaces.py"]
)
def test_a_byte_of_a_covered_file_changes_the_digest(name: str, copy: Path) -> None:
    before = code_digest([], copy)
    path = copy / name
    for source in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
        kept = source.read_bytes()
        source.write_bytes(kept + b"\n")
        assert code_digest([], copy) != before, source
        source.write_bytes(kept)
    assert code_digest([], copy) == before


@pytest.mark.parametrize("name", SUMMED_BY)
def test_a_name_that_stands_for_nothing_is_an_error(name: str, copy: Path) -> None:
    shutil.rmtree(copy / name) if (copy / name).is_dir() else (copy / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        code_digest([], copy)


def test_a_new_file_of_a_covered_folder_changes_the_digest(copy: Path) -> None:
    before = code_digest([], copy)
    (copy / "auditing" / "distributed" / "more.py").write_text("", encoding="utf-8")
    assert code_digest([], copy) != before


def test_the_modules_of_statistics_and_adapters_are_covered() -> None:
    class OfThisModule:
        pass

    assert code_digest([OfThisModule()]) != code_digest([])


def test_all_modules_of_a_plugin_are_covered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A statistic may call a neighbour: sums are of its source too."""
    package = tmp_path / "neighbours_plugin"
    package.mkdir()
    (package / "__init__.py").write_text("from neighbours_plugin.helper import Statistic\n")
    (package / "helper.py").write_text("class Statistic: ...\n")
    (package / "beside.py").write_text("FACTOR = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    statistic = importlib.import_module("neighbours_plugin").Statistic
    before = class_digest(statistic), code_digest([statistic()])
    (package / "beside.py").write_text("FACTOR = 2\n")
    assert class_digest(statistic) != before[0]
    assert code_digest([statistic()]) != before[1]
    sys.modules.pop("neighbours_plugin.helper")
    sys.modules.pop("neighbours_plugin")


def imported(source: Path) -> set[str]:
    """Files of this package that a module imports anywhere, as paths inside the package."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or node.module is None or node.level:
            continue
        first, *inside = node.module.split(".")
        if first != PACKAGE.name:
            continue
        for parts in (inside, *([*inside, alias.name] for alias in node.names)):
            module = PACKAGE.joinpath(*parts)
            for path in (module.with_suffix(".py"), module / "__init__.py"):
                if path.is_file():
                    found.add(path.relative_to(PACKAGE).as_posix())
    return found


def test_what_the_covered_modules_import_is_covered() -> None:
    covered = summing_files(PACKAGE)
    beyond: set[str] = set()
    for name, source in covered.items():
        if name != "stages/audit.py":  # it imports what prepares a run
            beyond |= imported(source) - covered.keys()
    assert beyond == SUMS_NOTHING.keys()
