"""The plan against random neurons of equal activation norm; the norms by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fairprune_framework as fp
from fairprune_framework.analysis.causality import render
from fairprune_framework.errors import UserError
from fairprune_framework.evaluation.random_sets import activation_norms
from fairprune_framework.runs.run import Run


def test_zeroing_the_plan_does_more_than_zeroing_random_neurons(run: Run) -> None:
    found = fp.causal(run, draws=9)
    assert found["p_value"] == pytest.approx(0.1)  # none of nine
    assert found["demographic"]["change"] < min(each["change"] for each in found["random"])
    assert found["control"] is None  # the planted set has no controls
    assert 0.8 < found["norm_ratio"] < 1.25


def test_at_least_one_draw(run: Run) -> None:
    with pytest.raises(UserError, match=r"--draws must be at least 1\. Got 0"):
        fp.causal(run, draws=0)


@torch.no_grad()
def test_activation_norms_by_hand(planned: Callable[[Path], Run], tmp_path: Path) -> None:
    run = planned(tmp_path)
    name = "model.layers.1.mlp"
    seen: list[torch.Tensor] = []
    documents = run.calibration.documents[0::2]
    module: Any = run.loaded.model.get_submodule(f"{name}.down_proj")
    handle = module.register_forward_pre_hook(lambda _module, args: seen.append(args[0][0].double()))
    for document in documents:
        run.loaded.model(input_ids=torch.tensor([document]))
    handle.remove()
    expected = torch.cat(seen).norm(dim=0)
    del run.calibration
    (run.folder / "calibration.jsonl").unlink()  # the model writes the text anew: what it writes is not counted
    torch.testing.assert_close(activation_norms(run.loaded, run.calibration.scoring)[name], expected, rtol=1e-5, atol=1e-8)


def test_as_text() -> None:
    effect = {"change": -0.5, "ci_low": -0.6, "ci_high": -0.4, "clusters": 9}
    answer = {
        "units": 12,
        "split": "heldout",
        "demographic": effect,
        "control": {**effect, "change": -0.05, "ci_low": None},
        "random": [{"change": -0.01}, {"change": None}, {"change": 0.02}],
        "p_value": 0.0476,
        "control_ratio": 0.1,
    }
    text = render(answer)
    for words in ("-50.0% [-60.0%, -40.0%], 9 templates", "-1.0% to +2.0%, 2 of", "p = 0.048", "react 10% as much"):
        assert words in text
    assert "controls" not in render({**answer, "control": None, "control_ratio": None})
