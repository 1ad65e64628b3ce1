"""What is to happen once a module is imported happens once, and not before."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from fairprune_framework.utilities.after_import import after_import


def test_once_and_not_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "looked_for.py").write_text("value = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "looked_for", raising=False)
    seen: list[ModuleType] = []
    finders = list(sys.meta_path)
    after_import("looked_for", seen.append)
    assert seen == []
    module = importlib.import_module("looked_for")
    assert seen == [module]
    assert module.value == 3
    assert sys.meta_path == finders
    after_import("looked_for", seen.append)
    assert seen == [module, module]


def test_importing_the_package_imports_no_transformers() -> None:
    code = "import sys, fairprune_framework; print('transformers' in sys.modules or 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
