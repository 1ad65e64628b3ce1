"""Masked measurements against a model whose weights were scaled by hand, and changes against the pure function."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fairprune_framework.contrasts.alignment import align_all, vocabularies
from fairprune_framework.contrasts.schema import Contrast
from fairprune_framework.evaluation.masked_evaluator import MaskedEvaluator
from fairprune_framework.evaluation.metrics.names import IDEALS, SEQUENCE_GAP, STEREOTYPE_PREFERENCE
from fairprune_framework.functional.paired_bootstrap import paired_change
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.testing.tiny import tiny_contrasts, tiny_model, tiny_tokenizer

SITE, UNITS = "model.layers.1.mlp", {"model.layers.1.mlp": [3, 17, 30]}
DOCUMENTS = [list(range(5, 25)), list(range(30, 44))]


def evaluator_of(model: Any, contrasts: list[Contrast], **options: Any) -> MaskedEvaluator:
    aligned, _ = align_all(contrasts, Encoder(tiny_tokenizer()))
    values = {category: len(names) for category, names in vocabularies(contrasts).items()}
    return MaskedEvaluator(model, recognise(model), aligned, values, **options)


def scaled_by_hand(factor: float) -> Any:
    model: Any = tiny_model("llama")
    with torch.no_grad():
        model.get_submodule(SITE).down_proj.weight[:, UNITS[SITE]] *= factor
    return model


def pairs() -> list[Contrast]:
    """Every contrast of two variants, one of them named as the stereotype."""
    named = []
    for contrast in tiny_contrasts():
        first, second = contrast.variants[:2]
        variants = (replace(first, attribute="stereotype"), replace(second, attribute="anti-stereotype"))
        named.append(replace(contrast, variants=variants))
    return named


@pytest.mark.parametrize("metric", list(IDEALS))
@pytest.mark.parametrize("factor", [0.0, 0.5])
def test_a_masked_measurement_is_that_of_a_model_changed_by_hand(metric: str, factor: float) -> None:
    options = {"documents": DOCUMENTS, "metric": metric}
    model = tiny_model("llama")
    evaluator = evaluator_of(model, pairs(), **options)
    measured = evaluator.measure(UNITS, factor)
    expected = evaluator_of(scaled_by_hand(factor), pairs(), **options).original
    assert measured.values == pytest.approx(expected.values, rel=1e-3, abs=1e-9)
    assert measured.perplexity == pytest.approx(expected.perplexity, rel=1e-5)
    assert measured.values.keys() == {contrast.id for contrast in evaluator.contrasts}
    if IDEALS[metric] != 0.5:  # a preference of few may stand still
        assert measured.values != evaluator.original.values
    assert not any(module._forward_pre_hooks for module in model.modules())


@torch.no_grad()
def test_sentence_metrics_come_from_the_log_probabilities_of_the_untouched_forward() -> None:
    model: Any = tiny_model("llama")
    gaps = evaluator_of(model, pairs(), metric=SEQUENCE_GAP).original.values
    preferred = evaluator_of(model, pairs(), metric=STEREOTYPE_PREFERENCE).original.values
    tokenizer = tiny_tokenizer()
    for contrast in pairs():
        log_p = []
        for variant in contrast.variants:
            ids = torch.tensor(tokenizer(variant.text)["input_ids"])
            found = torch.log_softmax(model(ids.unsqueeze(0)).logits[0, :-1].double(), -1)
            log_p.append(found[torch.arange(len(ids) - 1), ids[1:]].sum().item())
        assert gaps[contrast.id] == pytest.approx(abs(log_p[0] - log_p[1]), abs=1e-4)
        assert preferred[contrast.id] == float(log_p[0] > log_p[1])


def test_change_mean_and_cost_are_those_of_the_pure_functions() -> None:
    evaluator = evaluator_of(tiny_model("llama"), tiny_contrasts(), documents=DOCUMENTS, seed=3)
    before, after = evaluator.original, evaluator.measure(UNITS)
    for control in (False, True):
        chosen = [contrast for contrast in evaluator.contrasts if contrast.control is control]
        expected = paired_change(
            [before.values[contrast.id] for contrast in chosen],
            [after.values[contrast.id] for contrast in chosen],
            [contrast.category for contrast in chosen],
            [contrast.template_id for contrast in chosen],
            seed=3,
        )
        assert evaluator.change(after, control=control) == expected
    assert before.perplexity is not None
    assert after.perplexity is not None
    assert evaluator.cost(after) == after.perplexity / before.perplexity - 1
    assert evaluator.cost(before) == 0
    assert evaluator.change(after, category="no such category") is None
    demographic = evaluator_of(tiny_model("llama"), [one for one in tiny_contrasts() if not one.control])
    change = demographic.change(demographic.original, resamples=0)
    assert change is not None
    assert demographic.mean(demographic.original) == change.before
    assert math.isfinite(change.before)


def test_templates_of_one_sentence_are_one_draw() -> None:
    """The same contrasts under further template ids, in further categories, are no further evidence."""
    once = tiny_contrasts()
    again = [
        replace(one, id=f"{one.id}-{copy}", category=f"{one.category}-{copy}", template_id=f"{one.template_id}-{copy}")
        for one in once
        for copy in range(3)
    ]
    sentences = {one.id: one.template_id.rpartition("-")[0] for one in again}
    model = tiny_model("llama")
    alone, said, unsaid = (
        evaluator_of(model, contrasts, sentences=labels)
        for contrasts, labels in ((once, None), (again, sentences), (again, None))
    )
    changes = [each.change(each.measure(UNITS, 0.5)) for each in (alone, said, unsaid)]
    assert changes[0] is not None
    assert changes[1] is not None
    assert changes[2] is not None
    assert [change.clusters for change in changes if change] == [10, 10, 30]
    assert changes[1].standard_error == pytest.approx(changes[0].standard_error)
    assert changes[2].standard_error < 0.7 * changes[0].standard_error  # type: ignore[operator]


def test_one_category_is_measured_as_in_the_whole() -> None:
    evaluator = evaluator_of(tiny_model("llama"), tiny_contrasts())
    for units in ({}, UNITS):
        whole, race = evaluator.measure(units), evaluator.measure(units, category="race")
        assert race.values == {c.id: whole.values[c.id] for c in evaluator.contrasts if c.category == "race"}
        assert race.perplexity is None
    with pytest.raises(ValueError, match="needs documents"):
        evaluator.cost(evaluator.original)


def test_a_stereotype_share_is_over_all_pairs_as_in_the_rows_of_an_evaluation() -> None:
    contrasts = [contrast for contrast in pairs() if not contrast.control]
    contrasts = [contrast for contrast in contrasts if contrast.category != "age" or contrast.id == "tiny-6"]
    assert len({contrast.category for contrast in contrasts}) == 2
    evaluator = evaluator_of(tiny_model("llama"), contrasts, metric=STEREOTYPE_PREFERENCE)
    after = evaluator.measure(UNITS)
    change = evaluator.change(after)
    assert change is not None
    assert change.before == pytest.approx(np.mean(list(evaluator.original.values.values())))
    assert change.after == pytest.approx(np.mean(list(after.values.values())))
    assert change.clusters == len(contrasts)
