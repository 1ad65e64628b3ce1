"""Work that is counted against what a plain loop does, text by text."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from fairprune_framework.models import work
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.head import answers_of
from fairprune_framework.models.work import Ledger, Sizes
from fairprune_framework.surgery.masking import masked
from fairprune_framework.testing.tiny import tiny_model

IDS = torch.tensor([[5, 6, 7, 8], [5, 6, 9, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])


@torch.inference_mode()
def test_each_text_counts_once_in_each_state() -> None:
    model: Any = tiny_model("llama")
    architecture, ledger, sizes = recognise(model), Ledger(), Sizes.of(model)
    units = {"model.layers.0.mlp": (3, 4)}
    with ledger.watching(model, "original"):
        for change in ({}, {}, units, {"model.layers.0.mlp": [3, 4]}):
            with masked(model, architecture, change):
                model.model(input_ids=IDS, attention_mask=MASK, use_cache=False)
    model.model(input_ids=IDS)  # outside: not seen
    assert (ledger.forwards, ledger.tokens, ledger.least_tokens) == (4, 32, 14)
    assert ledger.least_flop == 2 * sizes.decoder * 14
    assert list(ledger.count((5, 6, 9)).values()) == [2, 2]
    assert {state[2] == "" for state in ledger.count((5, 6, 7, 8))} == {True, False}
    assert not ledger.count((5, 6))
    assert not model.model._forward_pre_hooks
    assert not model.lm_head._forward_hooks


@torch.inference_mode()
def test_logits_made_after_a_forward_are_no_second_forward() -> None:
    model: Any = tiny_model("llama")
    ledger, sizes = Ledger(), Sizes.of(model)
    with ledger.watching(model, "original"):
        answers = answers_of(model, input_ids=IDS)
        answers.logits((torch.tensor([0, 1, 1]), torch.tensor([3, 1, 2])))
    assert (ledger.forwards, ledger.least_tokens, ledger.logits) == (1, 8, 1 + 3)
    assert ledger.least_flop == 2 * sizes.decoder * 8 + 2 * sizes.head * 4
    assert ledger.to_json(rate=1000.0)["least_seconds"] == round(ledger.least_flop / (2 * sizes.decoder * 1000), 3)
    assert ledger.to_json()["least_seconds"] is None
    assert Ledger().to_json() == {}


def test_backward_passes_count_each_time() -> None:
    model: Any = tiny_model("llama")
    ledger, sizes = Ledger(), Sizes.of(model)
    with ledger.watching(model, "original"):
        for _ in range(2):
            model(input_ids=IDS, attention_mask=MASK, use_cache=False)
    assert (ledger.least_tokens, ledger.backward_tokens) == (7, 14)
    assert 0 < sizes.behind < sizes.decoder
    forward, head = 2 * sizes.decoder * 7, 2 * sizes.head * 8 * 2
    assert ledger.least_flop == forward + head + 2 * sizes.behind * 14


def test_what_is_generated_is_counted_apart() -> None:
    model: Any = tiny_model("llama")
    ledger = Ledger()
    with ledger.watching(model, "original"):
        model.generate(IDS[:1], attention_mask=MASK[:1], max_new_tokens=3, min_new_tokens=3, do_sample=False, pad_token_id=0)
    assert ledger.forwards == 3
    assert ledger.generated == ledger.tokens
    assert ledger.least_flop == 0


def test_a_model_that_is_let_go_of_is_not_kept() -> None:
    """`evaluate` has one model in memory at a time."""
    model: Any = tiny_model("llama")
    gone, ledger = weakref.ref(model), Ledger()
    with ledger.watching(model, "original"):
        model(input_ids=IDS)
        del model
        gc.collect()
        assert gone() is None
    assert ledger.forwards == 1


@torch.inference_mode()
def test_memory_does_not_grow_with_the_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "MOST_TEXTS", 1)
    model: Any = tiny_model("llama")
    ledger = Ledger()
    with ledger.watching(model, "original"):
        for _ in range(3):
            model.model(input_ids=IDS, attention_mask=MASK)
    assert len(ledger.times) == 1
    assert ledger.least_tokens == 4 + 3 * 3


def test_sizes_are_the_weights_that_a_token_meets() -> None:
    model: Any = tiny_model("mixtral")
    sizes = Sizes.of(model)
    matrices = [(name, each) for name, each in model.model.named_parameters() if each.ndim > 1 and "embed" not in name]
    experts = model.config.num_local_experts
    routed = model.config.num_experts_per_tok / experts
    wanted = sum(each.numel() * (routed if ".experts." in name else 1) for name, each in matrices)
    assert sizes.decoder == wanted < sum(each.numel() for _, each in matrices)
    assert sizes.head == model.config.hidden_size * model.lm_head.weight.shape[0]


def test_a_run_says_what_each_stage_computed(finished: Path) -> None:
    record = json.loads((finished / "run.json").read_text())
    assert set(record["work"]) == {"audit", "prune", "evaluate"}
    for counted in record["work"].values():
        assert 0 < counted["least_tokens"] <= counted["tokens"]
        assert counted["least_gflop"] > 0
    assert record["work"]["audit"]["backward_tokens"] == 0 < record["work"]["audit"]["forwards"]
    assert record["work"]["evaluate"]["generated"] > 0
