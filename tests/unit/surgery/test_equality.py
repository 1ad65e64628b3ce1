"""Float32 for a while, bit by bit undone; logits against those of transformers; distances by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fairprune_framework.surgery.equality import compared, every_answer, in_float32, logits_of, same_answers
from fairprune_framework.testing.tiny import tiny_model

IDS = torch.randint(3, 300, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_for_a_while(dtype: torch.dtype) -> None:
    model: Any = tiny_model("llama", dtype=dtype)
    before = {name: value.clone() for name, value in model.named_parameters()}
    with pytest.raises(RuntimeError, match="stop"), in_float32(model):
        assert {value.dtype for value in model.parameters()} == {torch.float32}
        assert all(value.equal(before[name].float()) for name, value in model.named_parameters())
        raise RuntimeError("stop")
    assert all(value.dtype == dtype and value.equal(before[name]) for name, value in model.named_parameters())


def test_logits_are_the_models() -> None:
    model: Any = tiny_model("llama")
    with torch.no_grad():
        expected = model(input_ids=IDS).logits
    torch.testing.assert_close(logits_of(model, IDS), expected, rtol=0, atol=0)


def test_distances_are_those_of_whole_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken few positions at a time, they are what numpy says of all at once."""
    monkeypatch.setattr("fairprune_framework.surgery.equality.WIDE_VALUES", 1000)
    one, other = tiny_model("llama"), tiny_model("llama", seed=1)
    difference, kl = compared(every_answer(one, IDS), every_answer(other, IDS))
    found, expected = (logits_of(model, IDS).double().numpy() for model in (one, other))
    log_q, log_p = (each - np.log(np.exp(each).sum(-1, keepdims=True)) for each in (found, expected))
    assert difference == pytest.approx(np.abs(found - expected).max(), rel=1e-6)
    assert kl == pytest.approx((np.exp(log_p) * (log_p - log_q)).sum(-1).mean(), rel=1e-5)
    assert compared(every_answer(one, IDS), every_answer(one, IDS)) == (0.0, 0.0)


def test_the_same_is_to_the_bit() -> None:
    one, other = tiny_model("llama"), tiny_model("llama")
    assert same_answers(every_answer(one, IDS), every_answer(other, IDS))
    with torch.no_grad():
        other.model.norm.weight[0] *= 1 + 1e-6
    assert not same_answers(every_answer(one, IDS), every_answer(other, IDS))
