"""A run that searches the factor of the operator `scale`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def test_a_run_scales_by_a_searched_factor(
    fairprune: Callable[..., Any], llama: Path, prompts: Path, quick: tuple[str, ...], tmp_path: Path
) -> None:
    words = (
        "run",
        llama,
        "--prompts",
        prompts,
        "--output",
        tmp_path / "run",
        *quick,
        "--operator",
        "scale",
        "--factor",
        "auto",
    )
    assert fairprune(*words, "--max-perplexity-increase", "9").code == 0
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    seen = plan["achieved"]["factors"]
    assert plan["factor"] == min((float(factor) for factor in seen), key=lambda f: seen[f"{f:g}"]["divergence"])
    removal = json.loads((tmp_path / "run" / "run.json").read_text())["removal"]
    assert (removal["operator"], removal["scaled"]) == ("scale", plan["achieved"]["units"])
