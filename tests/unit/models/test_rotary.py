"""Encodings that depend on the longest text of a batch: told from the config, and seen in the answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fairprune_framework.errors import UserError
from fairprune_framework.models.rotary import batch_limit, refuse_longer
from fairprune_framework.testing.tiny import save_tiny

LONG = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [8.0, 16.0, 30.0, 60.0]}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}


def config(**more: Any) -> LlamaConfig:
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 48, "vocab_size": 64}
    return LlamaConfig(**sizes, max_position_embeddings=16, **more)


@pytest.mark.parametrize(
    ("rotary", "expected"),
    [
        (None, None),
        ({**LONG, "original_max_position_embeddings": 8, "factor": 2.0}, ("longrope", 8)),
        (DYNAMIC, ("dynamic", 16)),
    ],
    ids=["default", "longrope", "dynamic"],
)
def test_the_limit_is_where_answers_begin_to_depend_on_neighbours(rotary: Any, expected: tuple[str, int] | None) -> None:
    """The prediction after a text of 6 tokens, alone and beside one at and beyond the limit."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(config(rope_parameters=rotary)).eval()
    found = batch_limit(model.config)
    assert found == expected
    limit = found[1] if found else 20

    @torch.inference_mode()
    def answer(beside: int) -> torch.Tensor:
        ids = torch.arange(2 * beside).reshape(2, beside) % 60 + 1
        ids[0, :6] = torch.arange(7, 13)
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, 5]  # type: ignore[no-any-return]

    alone = answer(6)
    torch.testing.assert_close(answer(limit), alone, rtol=0, atol=2e-6)
    beyond = float((answer(2 * limit) - alone).abs().max())
    assert (beyond > 1e-5) == (found is not None)


def test_a_longer_text_is_refused() -> None:
    refuse_longer(config(rope_parameters=DYNAMIC), 16, "it")
    refuse_longer(config(), 10**6, "it")
    with pytest.raises(UserError, match=r"\(dynamic\) .* more than 16 tokens, and it has 17"):
        refuse_longer(config(rope_parameters=DYNAMIC), 17, "it")


def test_an_audit_of_longer_texts_ends_before_anything_is_written(fairprune: Any, prompts: Path, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", "llama")
    path = folder / "config.json"
    content = json.loads(path.read_text())
    half = content.get("head_dim") or content["hidden_size"] // content["num_attention_heads"]
    factors = {"short_factor": [1.0] * (half // 2), "long_factor": [8.0] * (half // 2)}
    content["rope_parameters"] = {**LONG, **factors, "original_max_position_embeddings": 4, "factor": 2.0}
    path.write_text(json.dumps(content))
    answer = fairprune("audit", folder, "--prompts", prompts, "--output", tmp_path / "run", "--bias", "variance")
    assert answer.code == 2
    assert "the longest text of the prompts has" in answer.err
    assert not (tmp_path / "run").exists()
