"""Which models may compute shared prefixes once, and why others may not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fairprune_framework.auditing.packing import Packer, tree_mask
from fairprune_framework.auditing.prefix_sharing import forward_inputs, prefix_sharing
from fairprune_framework.testing.tiny import FAMILIES, tiny_model


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tiny_family_may(family: str) -> None:
    found = prefix_sharing(tiny_model(family))
    assert found.up_to > 0
    assert "a packed row equals plain ones within" in found.because


@pytest.mark.parametrize(
    ("family", "options", "up_to"),
    [
        ("llama", {}, 2**31),
        ("mistral", {"sliding_window": 9}, 9),
        ("gemma2", {"sliding_window": 16}, 16),
        ("mistral", {"sliding_window": None}, 2**31),
    ],
)
def test_a_window_of_attention_bounds_the_length(family: str, options: dict[str, Any], up_to: int) -> None:
    assert prefix_sharing(tiny_model(family, **options)).up_to == up_to


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_packed_rows_give_the_hidden_states_of_the_texts_alone(implementation: str) -> None:
    """Either kind of mask, against the untouched trunk."""
    model: Any = tiny_model("llama", attn_implementation=implementation)
    texts = [(5, 6, 7, 8, 9), (5, 6, 7, 10), (5, 6, 20, 21, 22, 23), (40, 41)]
    packer = Packer(width=32)
    packer.add(texts)
    layout = packer.layout(0)
    inputs = forward_inputs(model, layout.input_ids, layout.position_ids, layout.paths)
    mask = tree_mask(layout.paths, *layout.input_ids.shape)
    if implementation == "sdpa":
        assert inputs["attention_mask"].equal(mask)
    else:
        assert (inputs["attention_mask"] == 0).equal(mask)
    with torch.no_grad():
        packed = model.model(**inputs).last_hidden_state.flatten(0, 1)
        for ids, path in zip(texts, layout.paths, strict=True):
            plain = model.model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0]
            torch.testing.assert_close(packed[path[: len(ids)]], plain, rtol=1e-4, atol=1e-5)


def test_recurrent_models_get_plain_rows() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=64, hidden_size=16, state_size=4, num_hidden_layers=2, initializer_range=0.5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MambaForCausalLM(config).eval()
    model.get_decoder = lambda: model.backbone
    found = prefix_sharing(model)
    assert found.up_to == 0
    assert found.because


@pytest.mark.parametrize("ignored", ["position_ids", "attention_mask"])
def test_a_model_that_ignores_what_it_is_given_gets_plain_rows(ignored: str) -> None:
    model: Any = tiny_model("llama")
    forward = model.model.forward
    model.model.forward = lambda **words: forward(**{**words, ignored: None})
    found = prefix_sharing(model)
    assert found.up_to == 0
    assert "differs from plain ones" in found.because


def test_a_model_that_refuses_a_tree_gets_plain_rows_and_keeps_its_mode() -> None:
    model: Any = tiny_model("llama").train()

    def refuse(**_words: Any) -> Any:
        raise ValueError("2-D masks only")

    model.model.forward = refuse
    found = prefix_sharing(model)
    assert (found.up_to, found.because) == (0, "the model takes no tree mask (ValueError)")
    assert model.training


def test_a_model_that_sees_no_other_token_tells_nothing() -> None:
    model: Any = tiny_model("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
    assert "inconclusive" in prefix_sharing(model).because
