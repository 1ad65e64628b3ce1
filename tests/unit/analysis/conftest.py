"""A run on the planted model, whose biased neurons are known, up to its plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import fairprune_framework as fp
from fairprune_framework.runs.run import Run
from fairprune_framework.testing.planted import Planted, planted_model


@pytest.fixture(scope="session")
def case() -> Planted:
    return planted_model(count=4)


@pytest.fixture(scope="session")
def planned(case: Planted) -> Callable[[Path], Run]:
    """Makes such a run in a folder."""

    def make(folder: Path) -> Run:
        text = folder / "text.txt"  # with attribute words: without them planted neurons are far quieter than any other
        text.write_text("\n\n".join(f"{one.variants[0].text}. {one.variants[1].text}." for one in case.contrasts))
        recipe = fp.Recipe(
            bias="attribution",  # type: ignore[arg-type]
            importance="max-abs-weight",  # type: ignore[arg-type]
            policy={"plugin": "protected-global", "protect": 0.0},  # type: ignore[arg-type]
            budget="12n",
            operator="zero",
            calibration=str(text),
            calibration_tokens=16,
            calibration_documents=8,
            max_perplexity_increase=5.0,
        )
        given = {"model": case.model, "tokenizer": case.tokenizer, "prompts": case.contrasts}
        return fp.plan(fp.score(fp.audit(recipe=recipe, output=folder / "planted", **given)))

    return make


@pytest.fixture(scope="session")
def run(planned: Callable[[Path], Run], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Read only, but for the answers that questions leave."""
    return planned(tmp_path_factory.mktemp("runs"))
