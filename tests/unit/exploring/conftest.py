"""An explorer of the finished run."""

from __future__ import annotations

from pathlib import Path

import pytest

from fairprune_framework.exploring.compare import Explorer


@pytest.fixture(scope="session")
def explorer(finished: Path) -> Explorer:
    return Explorer(finished)
