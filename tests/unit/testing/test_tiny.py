"""Tiny models, tokenizer and contrasts: what other tests rely on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from fairprune_framework.testing.tiny import (
    FAMILIES,
    WORDS,
    save_tiny,
    tiny_config,
    tiny_contrasts,
    tiny_model,
    tiny_tokenizer,
    vocabulary_size,
)

TOKENIZER = tiny_tokenizer()


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
@settings(max_examples=60, deadline=None)
def test_any_text_is_spelled_and_read_back(text: str) -> None:
    ids = TOKENIZER(text)["input_ids"]
    assert ids[0] == TOKENIZER.bos_token_id
    if not any(token in text for token in TOKENIZER.all_special_tokens):
        assert TOKENIZER.decode(ids, skip_special_tokens=True).removeprefix(" ") == text.removeprefix(" ")
    assert max(ids) < vocabulary_size(TOKENIZER)


@pytest.mark.parametrize("word", WORDS)
def test_every_word_is_one_token(word: str) -> None:
    assert len(TOKENIZER(word)["input_ids"]) == 2  # after <s>


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_a_causal_model_whose_neurons_matter(family: str) -> None:
    model: Any = tiny_model(family)
    assert not model.training
    assert type(model).__name__.endswith("ForCausalLM")
    ids = torch.arange(5, 15).unsqueeze(0)
    with torch.no_grad():
        logits = model(input_ids=ids).logits
        other = model(input_ids=torch.cat([ids[:, :-1], torch.tensor([[40]])], 1)).logits
    assert logits.shape == (1, 10, vocabulary_size(TOKENIZER))
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(logits[:, :-1], other[:, :-1], rtol=1e-4, atol=1e-5)  # no token sees what follows
    assert logits.std() > 0.05


def test_arguments_alone_decide_the_weights() -> None:
    state = torch.random.get_rng_state()
    one, same, other = tiny_model("llama"), tiny_model("llama"), tiny_model("llama", seed=1)
    assert torch.random.get_rng_state().equal(state)
    for (name, value), again in zip(one.named_parameters(), same.parameters(), strict=True):
        assert value.equal(again), name
    assert not one.get_parameter("lm_head.weight").equal(other.get_parameter("lm_head.weight"))
    wide: Any = tiny_model("phi3", layers=3, hidden=64, width=20, dtype=torch.bfloat16)
    assert (wide.config.num_hidden_layers, wide.config.hidden_size, wide.config.intermediate_size) == (3, 64, 20)
    assert wide.dtype == torch.bfloat16


@pytest.mark.parametrize("family", ["llama", "mixtral", "cohere"])
def test_a_saved_model_is_loaded_by_transformers(family: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m", family, seed=3)
    model = AutoModelForCausalLM.from_pretrained(folder)
    expected = dict(tiny_model(family, seed=3).named_parameters())
    assert all(value.equal(expected[name]) for name, value in model.named_parameters())
    text = "The nurse walked home ."
    assert AutoTokenizer.from_pretrained(folder)(text)["input_ids"] == TOKENIZER(text)["input_ids"]


def test_an_unknown_family_is_named() -> None:
    with pytest.raises(ValueError, match=r"no tiny family 'lama'\. Did you mean 'llama'\?"):
        tiny_config("lama")


def test_contrasts_are_of_every_kind() -> None:
    contrasts = tiny_contrasts()
    assert len({contrast.id for contrast in contrasts}) == 12
    assert {len(contrast.variants) for contrast in contrasts} == {2, 3}
    assert {contrast.split for contrast in contrasts} == {"select", "heldout"}
    assert {contrast.category for contrast in contrasts if contrast.control} == {"stature"}
    lengths = [{len(TOKENIZER(variant.text)["input_ids"]) for variant in contrast.variants} for contrast in contrasts]
    assert {len(found) == 1 for found in lengths} == {True, False}
    assert any(contrast.variants[0].text.endswith(contrast.variants[0].attribute.title()) for contrast in contrasts)
