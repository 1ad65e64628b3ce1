"""Logits made after a forward against those of the untouched model, for families with soft caps, scales, experts and towers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fairprune_framework.api.decoders import text_decoder
from fairprune_framework.errors import FairpruneError
from fairprune_framework.models import head
from fairprune_framework.models.head import answers_of, positions_before, vocabulary_of
from fairprune_framework.testing.families import small_model
from fairprune_framework.testing.tiny import tiny_model

IDS = torch.randint(12, 40, (3, 9), generator=torch.Generator().manual_seed(0))
SOME = (torch.tensor([0, 1, 2, 2]), torch.tensor([8, 0, 3, 4]))


@torch.inference_mode()
@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere", "granite", "mixtral", "opt", "gpt_neox", "falcon"])
def test_logits_are_the_model_s_own(family: str) -> None:
    model: Any = small_model(family).eval()
    expected = model(input_ids=IDS, use_cache=False).logits
    found = answers_of(model, input_ids=IDS).logits(SOME)
    torch.testing.assert_close(found, expected[SOME], rtol=1e-5, atol=1e-6)


@torch.inference_mode()
@pytest.mark.parametrize("family", ["llava", "gemma3"])
def test_logits_of_a_model_that_carries_more_than_its_decoder(family: str) -> None:
    model: Any = small_model(family, "wrapper").eval()
    expected = model(input_ids=IDS, use_cache=False).logits
    torch.testing.assert_close(answers_of(model, input_ids=IDS).logits(SOME), expected[SOME], rtol=1e-5, atol=1e-6)


@torch.inference_mode()
def test_the_decoder_computes_once_and_the_head_few_positions_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = tiny_model("llama").eval()
    width = vocabulary_of(model)
    expected = model(input_ids=IDS, use_cache=False).logits
    calls, seen = list[int](), list[int]()
    text_decoder(model).layers[0].register_forward_hook(lambda *_: calls.append(1))
    model.get_output_embeddings().register_forward_hook(lambda _m, _a, out: seen.append(out.shape[:-1].numel()))
    monkeypatch.setattr(head, "VALUES", 4 * width + 3)
    positions = positions_before([9, 1, 6], "cpu")
    assert len(positions[0]) == 8 + 0 + 5
    answers = answers_of(model, input_ids=IDS)
    parts = list(answers.parts(positions, width))
    assert [len(logits) for _, logits in parts] == [4, 4, 4, 1]
    torch.testing.assert_close(torch.cat([logits for _, logits in parts]), expected[positions], rtol=1e-5, atol=1e-6)
    assert (len(calls), seen) == (1, [1, 4, 4, 4, 1])


@torch.inference_mode()
def test_the_model_is_left_as_it_was() -> None:
    model: Any = tiny_model("llama").eval()
    decoder = text_decoder(model)
    own = decoder.forward

    def of_another_library(*args: Any, **kwargs: Any) -> Any:
        return own(*args, **kwargs)

    for mine in (None, of_another_library):
        if mine is not None:
            decoder.forward = mine
        answers = answers_of(model, input_ids=IDS)
        answers.logits(SOME)
        with pytest.raises(IndexError):
            answers.logits((torch.tensor([3]), torch.tensor([0])))
        assert decoder.__dict__.get("forward") is mine
        assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_a_model_without_a_head_is_named() -> None:
    model: Any = tiny_model("llama").model
    with pytest.raises(FairpruneError, match="LlamaModel has no output embeddings"):
        answers_of(model, input_ids=IDS)


def test_a_head_that_does_not_see_the_tokens_is_named() -> None:
    model: Any = tiny_model("llama")
    model.get_output_embeddings().register_forward_pre_hook(lambda _m, args: (args[0].flatten(0, 1),), prepend=True)
    with pytest.raises(FairpruneError, match="LlamaForCausalLM gives its head no vector for each token"):
        answers_of(model, input_ids=IDS)
