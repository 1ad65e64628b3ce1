"""A grid on the planted model, whose biased neurons are known, and its finished folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fairprune_framework.ablation.ablate import ablate
from fairprune_framework.testing.planted import Planted, planted_model

TEXT = {"calibration_tokens": 16, "calibration_documents": 8, "max_perplexity_increase": 5.0}
GRID: dict[str, Any] = {
    "bias": ["variance", "attribution"],
    "importance": "max-abs-weight",
    "policy": [{"plugin": "protected-global", "protect": 0.0}],
    "operator": ["zero", {"operator": "scale", "factor": 0.5}],
    "budget": "12n",
    "controls": [{"plugin": "random", "matched": True}],
    "control_seeds": 2,
    **TEXT,
}


@pytest.fixture(scope="session")
def case() -> Planted:
    return planted_model(count=4)


@pytest.fixture(scope="session")
def given(case: Planted) -> dict[str, Any]:
    """Model, tokenizer and prompts of an ablation, in memory."""
    return {"model": case.model, "tokenizer": case.tokenizer, "prompts": case.contrasts}


@pytest.fixture(scope="session")
def grid() -> dict[str, Any]:
    return GRID


@pytest.fixture(scope="session")
def done(given: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished ablation. Read only: copy it to work on it."""
    folder = tmp_path_factory.mktemp("ablations") / "done"
    assert ablate(GRID, folder, **given) is not None
    return folder
