"""What the tests of contract suites share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fairprune_framework.testing.contracts import CheckFailed, check_plugin


@pytest.fixture(scope="session")
def fails() -> Callable[..., None]:
    """Assert that a plugin fails a check, and for the check's own reason, not because it cannot be run."""

    def check_fails(kind: Any, plugin: Any, check: str, **options: Any) -> None:
        report = check_plugin(kind, plugin, only=[check], **options)
        assert list(report.failures) == [check], f"{check} does not see what is wrong with {plugin}"
        with pytest.raises(CheckFailed, match=check):
            report.raise_if_failed()

    return check_fails


@pytest.fixture(scope="session")
def common() -> set[str]:
    """Checks of every kind of plugin; `test_contracts.py` has a bad plugin for each."""
    return {
        "interface",
        "api-version",
        "frozen-dataclass",
        "options-round-trip",
        "equal-by-value",
        "picklable",
        "declared-needs",
    }
