"""Who imports whom, read from the sources: the core knows no plugin, a plugin knows no other plugin, the lazy api keeps its word."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import fairprune_framework as fp
from fairprune_framework import api

ROOT = Path(__file__).parents[2]
PLUGINS = {folder.name: folder for folder in (ROOT / "plugins").iterdir() if (folder / "__init__.py").is_file()}


def imported(file: Path) -> Iterator[str]:
    """Top-level names of all that a module imports, inside functions and for type checking too, also by `import_module("...")`."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.partition(".")[0] in PLUGINS:
            yield node.value.partition(".")[0]


def test_there_are_plugins() -> None:
    assert len(PLUGINS) > 10
    assert "fairprune_variance" in PLUGINS


def test_an_import_in_a_function_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text("def f():\n    from fairprune_glu import Glu\n    import_module('fairprune_variance.x')\n")
    assert set(imported(file)) == {"fairprune_glu", "fairprune_variance"}


def test_the_core_imports_no_plugin() -> None:
    files = sorted((ROOT / "fairprune_framework").rglob("*.py"))
    assert [str(file) for file in files if set(imported(file)) & PLUGINS.keys()] == []


@pytest.mark.parametrize("name", sorted(PLUGINS))
def test_a_plugin_imports_no_other_plugin(name: str) -> None:
    for file in PLUGINS[name].rglob("*.py"):
        assert not set(imported(file)) & (PLUGINS.keys() - {name}), file


def test_every_name_of_the_api_is_there() -> None:
    assert sorted(api._EXPORTS) == sorted(api.__all__)
    for name, module in api._EXPORTS.items():
        assert getattr(api, name) is getattr(import_module(module), name)


def test_every_name_of_the_package_is_there_and_strict_type_checkers_see_it() -> None:
    assert sorted([*fp._EXPORTS, "__version__"]) == sorted(fp.__all__)
    tree = ast.parse(Path(str(fp.__file__)).read_text())
    lists = [node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"]
    assert [sorted(ast.literal_eval(each)) for each in lists] == [
        sorted(fp.__all__)
    ]  # a literal: one that is computed is not read
