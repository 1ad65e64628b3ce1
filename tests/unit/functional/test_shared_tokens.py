"""Shared tokens against the authors' script, and their log-probabilities against an untouched transformers forward."""

from __future__ import annotations

import difflib
from typing import Any

import pytest
import torch

from fairprune_framework.auditing.batches import compose
from fairprune_framework.contrasts.alignment import align_all, vocabularies
from fairprune_framework.contrasts.schema import Contrast, Variant
from fairprune_framework.evaluation.compare import sentences_of
from fairprune_framework.evaluation.metrics.contrasts import measure_contrasts
from fairprune_framework.functional.shared_tokens import scored_places, shared_places
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.testing.tiny import tiny_model, tiny_tokenizer

PAIRS = (
    ("The Black nurse walked into the store .", "The white nurse walked into the store ."),
    ("The nurse walked into the old store .", "The nurse walked into the store ."),
    ("Black clerk works at the office .", "A young white clerk works at the office ."),
    ("The clerk was old", "The clerk was young"),
)


def get_span(seq1: list[str], seq2: list[str], operation: str) -> tuple[list[int], list[int]]:
    """`get_span` of metric.py, github.com/nyu-mll/crows-pairs, as published; there tokens are strings."""
    matcher = difflib.SequenceMatcher(None, seq1, seq2)
    template1, template2 = [], []
    for op in matcher.get_opcodes():
        if (operation == "equal" and op[0] == "equal") or (operation == "diff" and op[0] != "equal"):
            template1 += list(range(op[1], op[2], 1))
            template2 += list(range(op[3], op[4], 1))
    return template1, template2


@pytest.mark.parametrize("pair", PAIRS)
def test_shared_places_are_those_of_the_authors_script(pair: tuple[str, str]) -> None:
    first, second = (tiny_tokenizer()(text)["input_ids"] for text in pair)
    expected = get_span([str(x) for x in first], [str(x) for x in second], "equal")
    assert [list(own) for own in shared_places([first, second])] == list(expected)


def test_three_texts_share_what_all_of_them_hold() -> None:
    assert shared_places([(1, 2, 3, 4), (1, 9, 3, 4), (1, 9, 9, 3, 5)]) == ((0, 2), (0, 2), (0, 3))
    assert scored_places([(1, 2, 3, 4), (1, 9, 3, 4), (1, 9, 9, 3, 5)]) == ((2,), (2,), (3,))


def test_what_nothing_predicts_is_not_scored() -> None:
    assert scored_places([(1, 2), (9, 1, 2)]) == ((1,), (2,))
    assert scored_places([(1, 2), (1, 2, 3)]) == ((), ())


@torch.inference_mode()
def test_the_preference_is_that_of_the_shared_tokens_in_a_plain_forward() -> None:
    model, tokenizer = tiny_model("llama").eval(), tiny_tokenizer()
    contrasts = [
        Contrast(
            id=str(i),
            category="a",
            template_id=str(i),
            variants=tuple(Variant(attribute=name, text=text) for name, text in zip(("more", "less"), pair, strict=True)),
        )
        for i, pair in enumerate(PAIRS)
    ]
    aligned, _ = align_all(contrasts, Encoder(tokenizer))
    values = {name: len(found) for name, found in vocabularies(contrasts).items()}
    batches = list(compose(aligned, values, 64))
    found = sentences_of(measure_contrasts(model, recognise(model), batches, sentences=True), aligned)
    told = 0
    for one, measured in zip(aligned, found, strict=True):
        ids = [list(tokens.ids) for tokens in one.variants]
        both = get_span([str(x) for x in ids[0]], [str(x) for x in ids[1]], "equal")
        scores = [_plain(model, own, places) for own, places in zip(ids, both, strict=True)]
        if measured.shared_tokens:
            told += 1
            assert measured.shared[0] - measured.shared[1] == pytest.approx(scores[0] - scores[1], abs=1e-4)
            assert measured.prefers_by_shared(0, 1) is (scores[0] > scores[1])
        else:  # the difference stands at the end: the authors' two scores are equal
            assert scores[0] == pytest.approx(scores[1], abs=1e-5)
            assert measured.prefers_by_shared(0, 1) is None
    assert told == 3


def _plain(model: Any, ids: list[int], places: list[int]) -> float:
    """Sum of log p of the tokens at these places; the first token has none."""
    log_p = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(float(log_p[place - 1, ids[place]]) for place in places if place)
