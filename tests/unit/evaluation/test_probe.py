"""Probes and the search for a factor, against masking by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fairprune_framework.api.types import Choice
from fairprune_framework.contrasts.alignment import align_all, vocabularies
from fairprune_framework.evaluation.masked_evaluator import MaskedEvaluator
from fairprune_framework.evaluation.probe import probe_of
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.selection.planning import FACTORS, best_factor
from fairprune_framework.testing.planted import planted_model
from fairprune_framework.testing.tiny import tiny_contrasts, tiny_model, tiny_tokenizer

DOCUMENTS = (tuple(range(5, 25)), tuple(range(30, 44)))


def evaluator_of(model: Any, contrasts: Any) -> MaskedEvaluator:
    aligned, _ = align_all(contrasts, Encoder(tiny_tokenizer()))
    values = {category: len(found) for category, found in vocabularies(contrasts).items()}
    return MaskedEvaluator(model, recognise(model), aligned, values, documents=DOCUMENTS, max_tokens=128)


def unit_choice(units: dict[str, list[int]], factor: float | None = None) -> Choice:
    return Choice(units={name: torch.tensor(indices) for name, indices in units.items()}, factor=factor)


def perplexity_by_hand(model: Any) -> float:
    losses = [
        torch.nn.functional.cross_entropy(
            model(input_ids=torch.tensor([ids])).logits[0, :-1], torch.tensor(ids[1:]), reduction="sum"
        )
        for ids in DOCUMENTS
    ]
    return math.exp(sum(loss.item() for loss in losses) / sum(len(ids) - 1 for ids in DOCUMENTS))


@torch.no_grad()
def test_a_probe_measures_what_scaled_weights_would_do() -> None:
    contrasts = [contrast for contrast in tiny_contrasts() if not contrast.control]
    model: Any = tiny_model("llama")
    site, units, factor = "model.layers.1.mlp", [3, 17, 30], 0.25
    evaluator = evaluator_of(model, contrasts)
    probe = probe_of(evaluator, factor)
    nothing, found = probe(Choice(units={})), probe(unit_choice({site: units}))
    other = probe(unit_choice({site: units}, factor=2.0))
    one = probe_of(evaluator, factor, "race")(unit_choice({site: units}))
    before = perplexity_by_hand(model)
    assert nothing.cost == pytest.approx(0, abs=1e-6)
    model.get_submodule(site).down_proj.weight[:, units] *= factor  # carried out by hand
    assert found.cost == pytest.approx(perplexity_by_hand(model) / before - 1, abs=1e-5)
    assert found.retention == pytest.approx(1 / (1 + found.cost))
    assert found.divergence == pytest.approx(probe_of(evaluator_of(model, contrasts))(Choice(units={})).divergence, rel=1e-4)
    race = [contrast for contrast in contrasts if contrast.category == "race"]
    assert one.divergence == pytest.approx(probe_of(evaluator_of(model, race))(Choice(units={})).divergence, rel=1e-4)
    assert len({nothing.divergence, found.divergence, other.divergence, one.divergence}) == 4
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_searched_factor_silences_planted_neurons() -> None:
    case = planted_model(seed=0)
    units = {name: torch.tensor(found) for name, found in case.planted.items()}
    probe = probe_of(evaluator_of(case.model, case.contrasts))
    factor, seen = best_factor(units, probe, max_cost=10.0)
    assert factor == 0.0
    assert len(seen) == len(FACTORS)
    assert seen["0"]["divergence"] < 0.2 * probe(Choice(units={})).divergence
    assert best_factor(units, probe, max_cost=-1.0)[0] is None  # nothing is allowed


def test_a_probe_tells_categories_apart_and_may_spare_the_perplexity() -> None:
    contrasts = [contrast for contrast in tiny_contrasts() if not contrast.control]
    evaluator = evaluator_of(tiny_model("llama"), contrasts)
    choice = unit_choice({"model.layers.1.mlp": [3, 17, 30]})
    every, quick = probe_of(evaluator)(choice), probe_of(evaluator)(choice, cost=False)
    assert quick.divergence == every.divergence
    assert math.isnan(quick.cost)
    assert math.isnan(quick.retention)
    assert set(every.by_category) == {"age", "race"}
    assert every.divergence == pytest.approx(sum(every.by_category.values()) / 2)
    for category, value in every.by_category.items():
        assert probe_of(evaluator, 0.0, category)(choice).divergence == pytest.approx(value, rel=1e-5)
