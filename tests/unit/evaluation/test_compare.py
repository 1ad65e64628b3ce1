"""The noise of the dtype, and one model beside another on the same material."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fairprune_framework.api.decoders import text_decoder
from fairprune_framework.contrasts.prompts import PromptSet
from fairprune_framework.evaluation.cache import MeasurementCache
from fairprune_framework.evaluation.compare import FLOOR_CONTRASTS, Material, measured, noise_floor
from fairprune_framework.evaluation.metrics.outputs import OutputReader
from fairprune_framework.evaluation.subject import Subject
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.recipes.recipe import Recipe
from fairprune_framework.testing.tiny import tiny_contrasts, tiny_model, tiny_tokenizer

PROMPTS = PromptSet(tiny_contrasts(), lambda: Encoder(tiny_tokenizer()))
DOCUMENTS = (tuple(range(5, 25)), tuple(range(30, 44)))


def subject(dtype: torch.dtype = torch.float32, **more: Any) -> Subject:
    model: Any = tiny_model("llama", dtype=dtype)
    return Subject(model, tiny_tokenizer(), recognise(model), MeasurementCache(None), **more)


def divergence(model: Any, texts: list[tuple[int, ...]]) -> float:
    with torch.no_grad():
        p = torch.stack([model(input_ids=torch.tensor([ids])).logits[0, -1].double() for ids in texts]).softmax(-1)
    return float(torch.special.entr(p.mean(0)).sum() - torch.special.entr(p).sum(-1).mean())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_floor_is_the_largest_difference_to_contrasts_alone(dtype: torch.dtype) -> None:
    one = subject(dtype)
    found = one.contrasts("own", PROMPTS.aligned, PROMPTS.values)
    floor = noise_floor(one, PROMPTS.aligned, PROMPTS.values, found)
    assert floor["contrasts"] == min(FLOOR_CONTRASTS, 12)
    assert floor["mean_divergence"] == pytest.approx(np.mean([each.divergence for each in found]))
    known = {each.id: each.divergence for each in found}
    off = [abs(divergence(one.model, [t.ids for t in c.variants]) - known[c.id]) for c in PROMPTS.aligned]
    limit = 1e-4 if dtype == torch.float32 else 0.5
    assert floor["largest"] < limit
    assert floor["largest"] == pytest.approx(max(off) / floor["mean_divergence"], rel=0.5, abs=1e-5)


def test_a_floor_is_seen_where_measurements_differ() -> None:
    """One divergence made wrong by a tenth of the mean: the floor says so."""
    from dataclasses import replace

    one = subject()
    found = one.contrasts("own", PROMPTS.aligned, PROMPTS.values)
    mean = float(np.mean([each.divergence for each in found]))
    wrong = [replace(found[0], divergence=found[0].divergence + 0.1 * mean), *found[1:]]
    floor = noise_floor(one, PROMPTS.aligned, PROMPTS.values, wrong)
    assert floor["largest"] == pytest.approx(0.1 / (1 + 0.1 / len(found)), rel=1e-2)


def test_the_floor_is_measured_on_what_is_computed_again_in_any_case() -> None:
    """What the report shows and was not kept yet is computed alone, once, and counts among the 16."""
    one = subject()
    found = one.contrasts("own", PROMPTS.aligned, PROMPTS.values)
    wanted = list(PROMPTS.aligned[5:8])
    outputs = OutputReader(wanted)
    rows: list[int] = []
    layer = text_decoder(one.model).layers[0]  # type: ignore[union-attr,index]
    handle = layer.register_forward_pre_hook(lambda _module, args: rows.append(len(args[0])))  # type: ignore[operator,union-attr]
    floor = noise_floor(one, PROMPTS.aligned, PROMPTS.values, found, wanted, outputs)
    handle.remove()
    assert floor["contrasts"] == len(rows) == min(FLOOR_CONTRASTS, len(PROMPTS.aligned))
    assert outputs.outputs.keys() == {each.id for each in wanted}
    assert not outputs.lacks(wanted)
    assert outputs.lacks(PROMPTS.aligned[:6]) == list(PROMPTS.aligned[:5])


def test_everything_is_measured_on_the_same_material(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairprune_framework.evaluation.metrics.generation.NEW_TOKENS", 2)
    recipe = Recipe(generate=("The nurse said",), accelerator="cpu")
    material = Material(recipe=recipe, prompts=PROMPTS, judged={}, documents=DOCUMENTS)
    heard: list[str] = []
    found = measured(subject(notify=heard.append), material)
    assert {each.id for each in found.contrasts} == {each.id for each in found.sentences} == {c.id for c in tiny_contrasts()}
    assert material.continued[-1] == "The nurse said"
    assert len(found.generations) == len(material.continued)
    assert found.text.tokens == (19, 13)
    assert (found.judged, found.tasks) == ({}, [])
    assert heard == ["measuring own-contrasts", "measuring generations", "measuring calibration"]
    assert [each.id for each in found.sentences] == [c.id for c in PROMPTS.aligned]


def test_continuations_are_of_judging_contrasts_and_the_same_for_a_model_that_did_not_change() -> None:
    recipe = Recipe(continuations=True, accelerator="cpu")
    prompts = PromptSet(tiny_contrasts(), lambda: Encoder(tiny_tokenizer()), split="template:0.5")
    material = Material(recipe=recipe, prompts=prompts, judged={}, documents=DOCUMENTS)
    before, after = (measured(subject(), material) for _ in range(2))
    judging = {one.id for one in prompts.aligned if one.split == "heldout"}
    assert set(before.sentiments) == judging
    assert judging < {one.id for one in prompts.aligned}
    assert before.sentiments == after.sentiments
    assert all(len(samples) == 16 for variants in before.sentiments.values() for samples in variants)
    changed = measured(subject(units={"model.layers.0.mlp": range(24)}), material)
    assert changed.sentiments.keys() == judging
