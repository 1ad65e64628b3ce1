"""The guard against perplexities by cross-entropy on weights that are scaled by hand."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from fairprune_framework.calibration.text import Calibration
from fairprune_framework.evaluation.guard import Guard, guard
from fairprune_framework.models.architecture import recognise
from fairprune_framework.testing.tiny import tiny_model

TEXT = Calibration(documents=tuple(tuple(range(3 + i, 25 + 3 * i)) for i in range(6)), source="x")
UNITS = {"model.layers.0.mlp": (1, 2, 40), "model.layers.1.mlp": (7,)}


@torch.no_grad()
def perplexity(model: Any) -> float:
    """On the odd documents."""
    total, tokens = 0.0, 0
    for ids in TEXT.documents[1::2]:
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
        total += torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum").item()
        tokens += len(ids) - 1
    return math.exp(total / tokens)


@pytest.mark.parametrize("factor", [0.0, 0.5])
def test_it_measures_the_judging_half(factor: float) -> None:
    model: Any = tiny_model("llama")
    other = copy.deepcopy(model)
    with torch.no_grad():
        for site, units in UNITS.items():
            other.get_submodule(site).down_proj.weight[:, list(units)] *= factor
    before, after = perplexity(model), perplexity(other)
    found, _ = guard(model, recognise(model), UNITS, TEXT, 0.05, factor)
    assert found.perplexity_before == pytest.approx(before, rel=1e-5)
    assert found.perplexity_after == pytest.approx(after, rel=1e-5)
    assert found.increase == pytest.approx(after / before - 1, abs=1e-5)
    assert found.tokens == sum(len(ids) - 1 for ids in TEXT.documents[1::2])
    assert found.kl > 0
    assert found.text_hash == TEXT.hash


def test_the_limit_itself_is_allowed() -> None:
    model: Any = tiny_model("llama")
    at = guard(model, recognise(model), UNITS, TEXT, 1.0)[0].increase
    assert guard(model, recognise(model), UNITS, TEXT, at)[0].held
    assert not guard(model, recognise(model), UNITS, TEXT, at - 1e-9)[0].held


def test_nothing_masked_costs_nothing() -> None:
    model: Any = tiny_model("llama")
    found, _ = guard(model, recognise(model), {}, TEXT, 0.0)
    assert (found.increase, found.kl, found.held) == (0.0, 0.0, True)


def test_bfloat16_is_judged_in_float32_and_left_as_it_was() -> None:
    model: Any = tiny_model("llama", dtype=torch.bfloat16)
    wide = copy.deepcopy(model).float()
    found, _ = guard(model, recognise(model), UNITS, TEXT, 0.05)
    assert found.perplexity_before == pytest.approx(perplexity(wide), rel=1e-5)
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}


def test_json_has_no_infinity() -> None:
    values: dict[str, Any] = {
        "limit": 0.05,
        "held": False,
        "bound_high": None,
        "perplexity_before": 3.0,
        "kl": math.nan,
        "tokens": 4,
        "text_hash": "h",
    }
    found = Guard(increase=math.inf, perplexity_after=math.inf, **values).to_json()
    assert found == {**values, "increase": None, "perplexity_after": None, "kl": None}
