"""What a subject measures is what a model with weights scaled by hand gives, kept under a key of all that it depends on."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from fairprune_framework.contrasts.alignment import align_all, vocabularies
from fairprune_framework.evaluation.cache import MeasurementCache
from fairprune_framework.evaluation.subject import Subject
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.models.weights import weights_digest
from fairprune_framework.testing.tiny import tiny_contrasts, tiny_model, tiny_tokenizer

CONTRASTS = [contrast for contrast in tiny_contrasts() if not contrast.control]
ALIGNED, _ = align_all(CONTRASTS, Encoder(tiny_tokenizer()))
VALUES = {category: len(names) for category, names in vocabularies(CONTRASTS).items()}
DOCUMENTS = [list(range(5, 25)), list(range(30, 44))]
UNITS = {"model.layers.1.mlp": (3, 17, 30)}


def subject(model: Any, folder: Path | None = None, **more: Any) -> Subject:
    return Subject(model, tiny_tokenizer(), recognise(model), MeasurementCache(folder), **more)


def by_hand(factor: float) -> Any:
    model: Any = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[:, list(UNITS["model.layers.1.mlp"])] *= factor
    return model


@pytest.mark.parametrize("factor", [0.0, 0.5])
def test_a_masked_subject_is_the_model_changed_by_hand(factor: float) -> None:
    masked, other = subject(tiny_model("llama")).masked_by(UNITS, factor), subject(by_hand(factor))
    for found, expected in zip(
        masked.contrasts("x", ALIGNED, VALUES), other.contrasts("x", ALIGNED, VALUES, frozenset({"neuron"})), strict=True
    ):
        assert found.id == expected.id
        assert found.divergence == pytest.approx(expected.divergence, rel=1e-3, abs=1e-9)
    for gap, other_gap in zip(masked.sentences("x", ALIGNED), other.sentences("x", ALIGNED), strict=True):
        assert gap.log_probabilities == pytest.approx(other_gap.log_probabilities, rel=1e-5)
    assert masked.documents("x", DOCUMENTS).nll == pytest.approx(other.documents("x", DOCUMENTS).nll, rel=1e-5)
    assert masked.text("x", DOCUMENTS[0], 7).nll == pytest.approx(other.text("x", DOCUMENTS[0], 7).nll, rel=1e-5)


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    heard: list[str] = []
    first = subject(tiny_model("llama"), tmp_path, notify=heard.append)
    found = (first.contrasts("own", ALIGNED, VALUES), first.sentences("own", ALIGNED), first.documents("text", DOCUMENTS))
    assert heard == ["measuring own-contrasts", "measuring own-sentences", "measuring text"]
    again = subject(tiny_model("llama"), tmp_path, notify=heard.append)
    same = (again.contrasts("own", ALIGNED, VALUES), again.sentences("own", ALIGNED), again.documents("text", DOCUMENTS))
    assert same == found
    assert len(heard) == 3


@pytest.mark.parametrize("change", ["mask", "factor", "weights", "budget", "text", "window"])
def test_anything_else_is_measured(tmp_path: Path, change: str) -> None:
    heard: list[str] = []
    model: Any = tiny_model("llama")
    one = subject(model, tmp_path, units=UNITS, notify=heard.append)
    one.text("x", DOCUMENTS[0], 7)
    ids, window, other = DOCUMENTS[0], 7, one
    if change == "mask":
        other = one.masked_by({"model.layers.0.mlp": (3,)})
    elif change == "factor":
        other = one.masked_by(UNITS, 0.5)
    elif change == "weights":
        other = subject(tiny_model("llama", seed=1), tmp_path, units=UNITS, notify=heard.append)
    elif change == "budget":
        other = subject(model, tmp_path, units=UNITS, max_tokens=64, notify=heard.append)
    elif change == "text":
        ids = DOCUMENTS[1]
    else:
        window = 8
    other.text("x", ids, window)
    assert len(heard) == 2
    one.text("x", DOCUMENTS[0], 7)
    assert len(heard) == 2


def test_one_bit_of_a_weight_is_another_model() -> None:
    model: Any = tiny_model("llama")
    found = weights_digest(model)
    assert found == weights_digest(copy.deepcopy(model))
    with torch.no_grad():
        flat = model.lm_head.weight.view(-1)
        flat[1234] = torch.nextafter(flat[1234], torch.tensor(10.0))
    assert weights_digest(model) != found
    assert weights_digest(tiny_model("llama", dtype=torch.bfloat16)) != found


def test_weights_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from fairprune_framework.evaluation import subject as module

    calls: list[int] = []
    monkeypatch.setattr(module, "weights_digest", lambda model: calls.append(1) or "digest")
    one = subject(tiny_model("llama"))
    assert one.masked_by(UNITS).masked_by({}).key["model"] == one.key["model"] != one.masked_by(UNITS).key["model"]
    assert len(calls) == 1


def test_the_mask_is_gone_after_an_error() -> None:
    model: Any = tiny_model("llama")
    one = subject(model).masked_by(UNITS)
    with pytest.raises(IndexError):
        one.documents("x", [[10**6, 5]])
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
