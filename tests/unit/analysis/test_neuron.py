"""One neuron: what moves it, what it promotes, and why it was chosen or not, by hooks and weights by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fairprune_framework as fp
from fairprune_framework.analysis.neuron import moved_by
from fairprune_framework.errors import UserError
from fairprune_framework.runs.run import Run
from fairprune_framework.testing.planted import Planted


def test_inspect_a_planted_neuron(run: Run, case: Planted) -> None:
    site, units = next((name, found) for name, found in run.read_plan().sites.items() if set(found) & set(case.planted[name]))
    unit = next(each for each in units if each in case.planted[site])
    found = fp.inspect(run, f"{site}:{unit}")
    assert found["choice"]["planned"] is True
    assert found["scores"]["bias"]["value"] == run.read_scores().bias[site][unit].item()
    movements = [each["movement"] for each in found["contrasts"]]
    assert movements == sorted(movements, reverse=True)
    assert len(found["promotes"]) == len(found["suppresses"]) == 10
    other = fp.inspect(run, f"{site}:{case.decoys[site][0]}")
    assert other["choice"]["planned"] is False
    assert movements[0] > 3 * other["contrasts"][0]["movement"]
    assert "below the cut" in other["choice"]["because"] or "not above 0" in other["choice"]["because"]


@torch.no_grad()
def test_movement_and_promoted_tokens_by_hand(run: Run) -> None:
    site, unit = run.loaded.architecture.sites["model.layers.2.mlp"], 5
    model: Any = run.loaded.model
    moved = {each["id"]: each for each in moved_by(run, site, unit)}
    pair = next(
        c
        for c in run.prompts.aligned
        if len(c.variants) == 2 and c.equal_length and c.variants[0].end - c.variants[0].start == 1
    )
    seen: list[torch.Tensor] = []
    handle = model.model.layers[2].mlp.down_proj.register_forward_pre_hook(
        lambda _module, args: seen.append(args[0][0, :, unit])
    )
    for tokens in pair.variants:
        model(input_ids=torch.tensor([tokens.ids]))
    handle.remove()
    first, second = (values[pair.variants[0].start :] for values in seen)
    assert moved[pair.id]["movement"] == pytest.approx(((first - second).abs() / 2).mean().item(), rel=1e-4)
    row = model.model.layers[2].mlp.down_proj.weight[:, unit]
    expected = torch.topk(model.lm_head(model.model.norm(row)), 10).indices.tolist()
    assert [each["id"] for each in fp.inspect(run, f"2:{unit}")["promotes"]] == expected


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("17", "must be SITE:I"),
        ("model.layers.1.mpl:3", "Did you mean 'model.layers.1.mlp'?"),
        ("1:96", "has 96 neurons, counted from 0"),
        ("9:0", "no site '9'"),
    ],
)
def test_units_that_do_not_exist(run: Run, unit: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        fp.inspect(run, unit)
    assert expected in str(caught.value)
