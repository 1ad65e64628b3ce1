"""What of a model is its text decoder, and what stands beside it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fairprune_framework.api.decoders import decoder_modules, decoder_path, other_modalities, text_config, text_decoder
from fairprune_framework.testing.families import small_model
from fairprune_framework.testing.tiny import tiny_model


def test_the_config_of_the_text_model() -> None:
    model: Any = tiny_model("llama")
    assert text_config(model) is model.config
    assert text_config(nn.Linear(2, 2)) is None
    wrapper: Any = small_model("llava", "wrapper")
    assert text_config(wrapper) is wrapper.config.text_config


@pytest.mark.parametrize(
    ("family", "kind", "path"),
    [
        ("gpt2", "causal", "transformer"),
        ("opt", "causal", "model.decoder"),
        ("bert", "causal", "bert"),
        ("whisper", "causal", "model.decoder"),
        ("mllama", "causal", "model"),
        ("modernbert-decoder", "causal", "model"),  # its attribute `decoder` is the head
        ("gemma3", "wrapper", "model.language_model"),
        ("idefics3", "wrapper", "model.text_model"),
        ("llama4", "wrapper", "language_model.model"),  # a model with a head of its own in between
    ],
)
def test_the_decoder_gives_what_the_head_reads(family: str, kind: Any, path: str) -> None:
    model: Any = small_model(family, kind)
    assert decoder_path(model) == path
    ids = torch.randint(20, 300, (1, 5), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = text_decoder(model)(input_ids=ids, use_cache=False).last_hidden_state
    assert found.shape == (1, 5, 32)


@pytest.mark.parametrize(
    ("family", "tower"), [("gemma3", "model.vision_tower"), ("qwen3_5", "model.visual"), ("mllama", "model.vision_model")]
)
def test_towers_are_no_part_of_the_decoder(family: str, tower: str) -> None:
    model = small_model(family, "wrapper")
    assert tower in other_modalities(model)
    assert not any(name.startswith(tower) for name, _, _ in decoder_modules(model))
    assert {layer for _, _, layer in decoder_modules(model)} == {0, 1, 2, 3}


def test_a_tower_inside_the_decoder() -> None:
    assert "git.image_encoder" in other_modalities(small_model("git"))
    assert not any("image_encoder" in name for name, _, _ in decoder_modules(small_model("git")))
    assert "model" not in other_modalities(small_model("whisper"))  # reads sound by its class, and holds the decoder
