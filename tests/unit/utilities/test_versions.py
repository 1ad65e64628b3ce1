"""Versions as the packages themselves tell them."""

from __future__ import annotations

import platform

import lightning
import pytest
import torch
import transformers

from fairprune_framework.utilities import versions


def test_versions_are_those_of_the_packages() -> None:
    found = versions.versions()
    assert found["torch"].partition("+")[0] == str(torch.__version__).partition("+")[0]  # the metadata may leave out the build
    assert found["transformers"] == transformers.__version__
    assert found["lightning"] == lightning.__version__
    assert found["python"] == platform.python_version()
    assert set(versions.PACKAGES) < set(found)
    assert "absent" not in found.values()


def test_a_package_that_is_not_there_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "PACKAGES", ("torch", "no-such-package-of-ours"))
    assert versions.versions()["no-such-package-of-ours"] == "absent"
