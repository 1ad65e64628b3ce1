"""Sampled continuations against forwards of the whole text, and the model's own distribution."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy import stats

from fairprune_framework.contrasts.alignment import AlignedContrast, align_all
from fairprune_framework.errors import FairpruneError
from fairprune_framework.evaluation.metrics.samples import SAMPLES, TOKENS, compounds, sampled
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.testing.tiny import tiny_contrasts, tiny_model, tiny_tokenizer


def contrasts() -> list[AlignedContrast]:
    return list(align_all(tiny_contrasts(), Encoder(tiny_tokenizer()))[0])[:3]


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@torch.no_grad()
def test_each_token_is_the_one_that_a_forward_of_the_whole_text_chooses(family: str) -> None:
    """Without a cache, in one forward of the finished text; the waiting times are drawn once more as the module says."""
    model = tiny_model(family)
    (one, *_) = contrasts()
    found = sampled(model, [one], seed=3)[0]
    for variant, samples in zip(one.variants, found, strict=True):
        stream = f"3/{one.category}/{one.template_id}"
        generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(stream.encode()).digest()[:7], "big"))
        waits = [torch.empty(SAMPLES, model.config.vocab_size).exponential_(generator=generator) for _ in range(TOKENS)]
        whole = torch.tensor([[*variant.ids, *ids] for ids in samples])
        assert whole.shape == (SAMPLES, len(variant.ids) + TOKENS)
        p = model(input_ids=whole).logits.double().softmax(-1)
        for step in range(TOKENS):
            rate = p[:, len(variant.ids) - 1 + step] / waits[step].double()
            chosen = whole[:, len(variant.ids) + step]
            assert (rate.gather(1, chosen[:, None])[:, 0] >= rate.max(1).values * (1 - 1e-4)).all()


@torch.no_grad()
def test_first_tokens_follow_the_distribution_of_the_model() -> None:
    model = tiny_model("llama")
    (one, *_) = contrasts()
    many = [replace(one, id=str(i), template_id=str(i), variants=one.variants[:1]) for i in range(80)]
    seen = Counter(ids[0] for variants in sampled(model, many) for ids in variants[0])
    p = model(input_ids=torch.tensor([one.variants[0].ids])).logits[0, -1].double().softmax(-1)
    order = p.argsort(descending=True)
    groups = order.split(max(1, len(order) // 12))
    observed = [sum(seen[int(token)] for token in group) for group in groups]
    expected = [float(p[group].sum()) * 80 * SAMPLES for group in groups]
    assert sum(observed) == 80 * SAMPLES
    assert stats.chisquare(observed, expected).pvalue > 0.001


def test_random_numbers_are_common_to_variants_and_models_and_differ_by_template_and_seed() -> None:
    model = tiny_model("llama")
    (one, *_) = contrasts()
    twice = replace(one, variants=(one.variants[0], one.variants[0]))
    ((first, second),) = sampled(model, [twice])
    assert first == second
    assert len({tuple(ids) for ids in first}) > 10
    assert sampled(tiny_model("llama"), [twice]) == [[first, second]]
    for other in (sampled(model, [replace(twice, template_id="another")]), sampled(model, [twice], seed=1)):
        assert other[0][0] != first


def test_what_follows_the_end_of_a_text_is_left_off_and_the_model_is_left_as_it_was() -> None:
    model = tiny_model("llama").train()
    (one, *_) = contrasts()
    whole = sampled(model, [one])[0][0]
    end = whole[0][5]
    cut = sampled(model, [one], end=end)[0][0]
    assert model.training
    assert cut[0] == whole[0][: whole[0].index(end)]
    assert all(end not in ids for ids in cut)


def test_damage_is_named() -> None:
    model: Any = tiny_model("llama")
    with torch.no_grad():
        model.get_output_embeddings().weight[0, 0] = float("nan")
    with pytest.raises(FairpruneError, match="NaN or Inf in the answers while continuing"):
        sampled(model, contrasts()[:1])


def test_compounds_of_plain_words() -> None:
    class Words:
        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            return " ".join({0: "wonderful", 1: "terrible", 2: "table"}[i] for i in ids)

    ((values,),) = compounds(Words(), [[[[0], [1], [2], [1, 1, 1], []]]])
    assert values[0] > 0.5
    assert values[3] < values[1] < -0.4
    assert values[2] == values[4] == 0.0
