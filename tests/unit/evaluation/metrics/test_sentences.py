"""Sentence metrics against an untouched transformers forward and against lm-eval's own model class."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fairprune_framework.contrasts.alignment import align_all
from fairprune_framework.errors import FairpruneError
from fairprune_framework.evaluation.metrics.sentences import (
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
    found = log_probabilities(model, ids, start, max_tokens=40)
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


def test_no_stereotypes_no_preference(model: Any, tokenizer: Any) -> None:
    contrasts = tiny_contrasts()
    aligned, _ = align_all(contrasts, Encoder(tokenizer))
    found = measure_sentences(model, aligned, start_token(tokenizer))
    rows = sentence_rows(sentence_items(contrasts, found, None), seed=0)
    assert {row.metric for row in rows} == {"sequence-gap"}
