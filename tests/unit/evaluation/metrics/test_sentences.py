"""Sentence metrics against an untouched transformers forward and against lm-eval's own model class."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fairprune_framework.contrasts.alignment import align_all
from fairprune_framework.contrasts.schema import Contrast, Variant, stereotyping_variants
from fairprune_framework.errors import FairpruneError
from fairprune_framework.evaluation.metrics.sentences import (
    SentenceMeasure,
    log_probabilities,
    measure_sentences,
    start_token,
)
from fairprune_framework.evaluation.sentence_rows import sentence_items, sentence_rows
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.testing.tiny import tiny_contrasts, tiny_model, tiny_tokenizer

TEXTS = [variant.text for contrast in tiny_contrasts() for variant in contrast.variants]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("llama").eval()


@torch.inference_mode()
def test_against_one_text_at_a_time_and_against_lm_eval(model: Any, tokenizer: Any) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    start = start_token(tokenizer)
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    found = log_probabilities(model, ids, start, budget=40)
    for one, value in zip(ids, found, strict=True):
        whole = torch.tensor([one if one[0] == start else [start, *one]])
        loss = model(input_ids=whole, labels=whole).loss
        assert value == pytest.approx(-loss.item() * (whole.shape[1] - 1), rel=1e-5)
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3)
    requests = [Instance("loglikelihood", {}, ("", text), i) for i, text in enumerate(TEXTS)]
    np.testing.assert_allclose(found, [answer[0] for answer in lm.loglikelihood(requests, disable_tqdm=True)], rtol=1e-5)


def test_the_model_is_left_as_it_was(model: Any) -> None:
    head = model.get_output_embeddings()
    model.train()
    try:
        log_probabilities(model, [[1, 2, 3]], None)
        assert model.training
        with pytest.raises((IndexError, RuntimeError)):
            log_probabilities(model, [[10**9, 1]], None)
        assert model.training
        assert not head._forward_pre_hooks
    finally:
        model.eval()


def test_damage_is_named(model: Any) -> None:
    head = model.get_output_embeddings()
    handle = head.register_forward_hook(lambda module, args, out: out * float("nan"))
    try:
        with pytest.raises(FairpruneError, match="NaN or Inf"):
            log_probabilities(model, [[1, 2, 3]], None)
    finally:
        handle.remove()


def pairs(names: tuple[str, str], n: int = 40) -> list[Contrast]:
    variants = tuple(Variant(attribute=name, text=f"text {name}") for name in names)
    return [Contrast(id=str(i), category="ab"[i % 2], template_id=str(i), variants=variants) for i in range(n)]


def test_who_is_the_stereotype() -> None:
    assert stereotyping_variants(pairs(("more", "less"))[0]) == (0, 1)
    assert stereotyping_variants(pairs(("anti", "pro"))[0]) == (1, 0)
    assert stereotyping_variants(pairs(("man", "woman"))[0]) is None


def measures(wins: int, n: int = 40) -> list[SentenceMeasure]:
    return [SentenceMeasure(id=str(i), log_probabilities=(-1.0, -1.5 if i < wins else -0.5)) for i in range(n)]


def test_rows_of_a_stereotype_set() -> None:
    contrasts = pairs(("more", "less"))
    rows = sentence_rows(sentence_items(contrasts, measures(34), measures(22)), seed=0, prefix="x/")
    assert [(row.metric, row.category) for row in rows] == [
        (metric, category) for metric in ("x/sequence-gap", "x/stereotype-preference") for category in (None, "a", "b")
    ]
    share = rows[3]
    assert (share.before, share.after, share.ideal, share.n) == (34 / 40, 22 / 40, 0.5, 40)
    assert share.change == pytest.approx((0.05 - 0.35) / 0.35)
    assert (share.only_before, share.only_after) == (12, 0)
    assert share.p_value == pytest.approx(2 * 0.5**12)
    assert share.ci_high is not None
    assert share.ci_high < 0
    assert [row.p_adjusted for row in rows[4:]] == [pytest.approx(2 * rows[4].p_value), pytest.approx(2 * rows[5].p_value)]


def test_rows_of_one_model_and_of_two_that_are_equal() -> None:
    contrasts = pairs(("more", "less"))
    alone = sentence_rows(sentence_items(contrasts, measures(34), None), seed=0)
    assert {row.after for row in alone} == {None}
    assert alone[3].before_low is not None
    same = sentence_rows(sentence_items(contrasts, measures(34), measures(34)), seed=0)
    assert {(row.difference, row.change, row.ci_low, row.ci_high, row.p_value) for row in same} == {(0.0, 0.0, 0.0, 0.0, 1.0)}


def test_few_items_have_no_interval() -> None:
    rows = sentence_rows(sentence_items(pairs(("more", "less"), 5), measures(4, 5), measures(1, 5)), seed=0)
    share = next(row for row in rows if row.metric == "stereotype-preference" and row.category is None)
    assert share.ci_low is share.after_low is None
    assert share.note is not None
    assert "too few" in share.note


def test_no_stereotypes_no_preference(model: Any, tokenizer: Any) -> None:
    contrasts = tiny_contrasts()
    aligned, _ = align_all(contrasts, Encoder(tokenizer))
    found = measure_sentences(model, aligned, start_token(tokenizer))
    rows = sentence_rows(sentence_items(contrasts, found, None), seed=0)
    assert {row.metric for row in rows} == {"sequence-gap"}
