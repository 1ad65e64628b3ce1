"""Tests mirror the tree: `tests/unit/a/test_b.py` is about `fairprune_framework/a/b.py`, and moves with it."""

from __future__ import annotations

from pathlib import Path

import pytest

import fairprune_framework

UNIT = Path(__file__).parent
PACKAGE = Path(fairprune_framework.__file__).parent
OF_THE_WHOLE = {"test_imports.py", "test_mirror.py", "reporting/test_browser.py"}
"""About the package as a whole, or the page in a browser; built-in plugins have their tests in `plugins/`."""

TESTS = sorted(path.relative_to(UNIT) for path in UNIT.rglob("test_*.py") if path.relative_to(UNIT).parts[0] != "plugins")


def test_there_is_something_to_look_at() -> None:
    assert len(TESTS) > 100
    assert {str(path) for path in TESTS} > OF_THE_WHOLE


@pytest.mark.parametrize("test", [path for path in TESTS if str(path) not in OF_THE_WHOLE], ids=str)
def test_every_test_file_stands_at_the_path_of_its_module(test: Path) -> None:
    module = PACKAGE / test.with_name(test.name.removeprefix("test_"))
    assert module.is_file(), f"there is no {module.relative_to(PACKAGE.parent)}: move the tests to where their module went"
