"""Every value counts: none can be changed without the fingerprint or the digest showing it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fairprune_framework.models import weights
from fairprune_framework.models.weights import fingerprint, weights_digest
from fairprune_framework.testing.tiny import tiny_model


def test_a_fingerprint_is_of_the_weights() -> None:
    model: Any = tiny_model("llama")
    found = fingerprint(model)
    assert found == fingerprint(tiny_model("llama")) == fingerprint(tiny_model("llama").train())
    assert found != fingerprint(tiny_model("llama", seed=1))
    assert found != fingerprint(tiny_model("llama", width=40))
    assert found == fingerprint(model.to(torch.bfloat16)) == fingerprint(model.float())


@pytest.mark.parametrize("read", [fingerprint, weights_digest])
@pytest.mark.parametrize("chunk", [61, 1 << 22])
def test_every_value_of_every_parameter_is_seen(read: Any, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "CHUNK", chunk)
    model: Any = tiny_model("llama")
    known, generator = read(model), torch.Generator().manual_seed(0)
    for _, parameter in model.named_parameters():
        flat = parameter.detach().view(-1)
        for place in {0, flat.numel() - 1, *torch.randint(flat.numel(), (2,), generator=generator).tolist()}:
            old = flat[place].clone()
            flat[place] += 1
            assert read(model) != known
            flat[place] = old
    assert read(model) == known


def test_the_digest_sees_the_last_bit_and_the_dtype() -> None:
    model: Any = tiny_model("llama")
    found, rounded = weights_digest(model), fingerprint(model)
    bits = model.lm_head.weight.detach().view(torch.int32).view(-1)
    bits[5] ^= 1
    assert weights_digest(model) != found
    bits[5] ^= 1
    assert weights_digest(model) == found
    assert weights_digest(model.to(torch.bfloat16)) != found
    assert fingerprint(model) == rounded


def test_saved_buffers_count_and_others_do_not() -> None:
    model: Any = tiny_model("llama")
    found = fingerprint(model)
    model.register_buffer("scratch", torch.zeros(3), persistent=False)
    assert fingerprint(model) == found
    model.register_buffer("kept", torch.zeros(3))
    assert (before := fingerprint(model)) != found
    model.kept[1] = 1
    assert fingerprint(model) != before


@pytest.mark.parametrize("sizes", [(100,), (1, 99), (7, 7, 86), (50, 0, 50), (3, 3, 94), (98, 1, 1), (6, 2, 91, 1)])
@pytest.mark.parametrize("exact", [True, False])
def test_parts_give_the_digest_of_the_whole(sizes: tuple[int, ...], exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "CHUNK", 7)
    value = torch.randn(10, 10, generator=torch.Generator().manual_seed(0))
    expected, found = weights.Digest(exact=exact), weights.Digest(exact=exact)
    expected.add("a", value)
    found.begin("a", value)
    for part in value.reshape(-1).split(sizes):
        found.feed(part)
    found.end()
    assert found.hexdigest() == expected.hexdigest()
    found.begin("b", value[:0])
    found.end()
    assert found.hexdigest() != expected.hexdigest()
