"""Packed rows, by properties that hold for every prompt set: each text is there, sees itself alone, and shares what it can."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairprune_framework.api.interfaces import Pass
from fairprune_framework.auditing import batches
from fairprune_framework.auditing.batches import compose, composition_hash
from fairprune_framework.auditing.micro_batch import MicroBatch
from fairprune_framework.auditing.observation import Geometry
from fairprune_framework.auditing.packing import Packer, tree_mask, width_of
from fairprune_framework.contrasts.alignment import AlignedContrast, Tokens

LONG = 10**6
TEXT = st.lists(st.integers(1, 3), min_size=1, max_size=12).map(tuple)  # few tokens, so that many prefixes are shared
POOL = st.lists(TEXT, min_size=2, max_size=12, unique=True)


def contrast(name: str, *texts: tuple[int, ...], category: str = "a") -> AlignedContrast:
    return AlignedContrast(
        id=name,
        category=category,
        template_id="t",
        control=False,
        split=None,
        variants=tuple(Tokens(ids=ids, start=len(ids) // 2, end=len(ids)) for ids in texts),
        attributes=tuple(range(len(texts))),
    )


@st.composite
def prompt_sets(draw: st.DrawFn) -> list[AlignedContrast]:
    pool = draw(POOL)
    return [
        contrast(str(n), *draw(st.lists(st.sampled_from(pool), min_size=2, max_size=min(4, len(pool)), unique=True)))
        for n in range(draw(st.integers(1, 25)))
    ]


def packed(contrasts: list[AlignedContrast], max_tokens: int, share_up_to: int = LONG) -> list[MicroBatch]:
    return list(compose(contrasts, {"a": 4}, max_tokens, share_up_to=share_up_to))


def beginnings(texts: set[tuple[int, ...]]) -> int:
    """Tokens that must be computed at least: distinct beginnings of texts."""
    return len({text[:n] for text in texts for n in range(1, len(text) + 1)})


@given(prompt_sets(), st.integers(2, 200))
@settings(max_examples=80, deadline=None)
def test_every_contrast_once_whole_and_within_the_budget(contrasts: list[AlignedContrast], max_tokens: int) -> None:
    found = packed(contrasts, max_tokens)
    assert sorted(identity for batch in found for identity in batch.ids) == sorted(one.id for one in contrasts)
    known = {one.id: one for one in contrasts}
    for batch in found:
        assert batch.tokens <= max_tokens or len(batch.ids) == 1
        flat, texts, geometry = batch.input_ids.reshape(-1), set[tuple[int, ...]](), Geometry(batch)
        for c, identity in enumerate(batch.ids):
            for v, tokens in enumerate(known[identity].variants):
                where = geometry.tokens_CVT[c, v][geometry.mask_CVT[c, v]]
                assert tuple(flat[where].tolist()) == tokens.ids
                assert len(set((where // batch.input_ids.shape[1]).tolist())) == 1
                texts.add(tokens.ids)
        computed = int(batch.attention_mask.sum())
        assert beginnings(texts) <= computed <= sum(map(len, texts))


@given(prompt_sets(), st.integers(2, 200))
@settings(max_examples=60, deadline=None)
def test_a_token_sees_its_own_text_alone(contrasts: list[AlignedContrast], max_tokens: int) -> None:
    for batch in packed(contrasts, max_tokens):
        assert batch.paths is not None
        assert batch.position_ids is not None
        rows, length = batch.input_ids.shape
        mask = tree_mask(batch.paths, rows, length)
        expected = torch.zeros(rows, length, length, dtype=torch.bool)
        expected[:, range(length), range(length)] = True
        for path in batch.paths.tolist():
            path = [place for place in path if place >= 0]
            for position, place in enumerate(path):
                assert int(batch.position_ids.view(-1)[place]) == position
                for before in path[:position]:
                    expected[place // length, place % length, before % length] = True
        assert torch.equal(mask, expected.unsqueeze(1))


@given(prompt_sets(), st.integers(2, 200), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_the_layout_is_hashed(contrasts: list[AlignedContrast], max_tokens: int, window: int) -> None:
    before, batches.WINDOW = batches.WINDOW, window * 5
    try:
        one, two = packed(contrasts, max_tokens), packed(contrasts, max_tokens)
    finally:
        batches.WINDOW = before
    assert composition_hash(one) == composition_hash(two)
    assert composition_hash(one) != composition_hash(packed(contrasts, max_tokens, 0))
    assert one[0].paths is not None
    one[0].paths = None
    assert composition_hash(one) != composition_hash(two)


def test_variants_stand_behind_their_prefix() -> None:
    (batch,) = packed([contrast("a", (1, 2, 3, 4, 5, 6), (1, 2, 3, 4, 7, 8), (1, 2, 3, 4, 5, 9))], 64)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9]]
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 4, 5, 5]]


def test_contrasts_that_begin_alike_share_too() -> None:
    system = tuple(range(20, 60))
    contrasts = [contrast(str(n), (*system, n), (*system, n + 10)) for n in range(1, 5)]
    (batch,) = packed(contrasts, 512)
    assert int(batch.attention_mask.sum()) == 40 + 8
    assert batch.input_ids.shape == (1, 48)


def test_long_texts_with_little_in_common_stay_in_rows_of_their_own() -> None:
    """Sharing one token of 200 would double the row, and attention over it costs more than the token."""
    one, two = (1, *range(100, 300)), (1, *range(300, 500))
    assert width_of([one, two]) == 201
    assert width_of([one, (*one[:150], *two[150:])]) == 201 + 51


def test_short_texts_fill_the_room_beside_others() -> None:
    packer = Packer(width=10)
    packer.add([(1, 2, 3, 4, 5, 6, 7, 8), (9, 9), (8, 8, 8)])
    assert packer.rows == [10, 3]


def test_texts_beyond_the_window_get_plain_rows() -> None:
    short, long = contrast("short", (1, 2, 3), (1, 2, 4)), contrast("long", tuple(range(1, 9)), (*range(1, 8), 9))
    found = {batch.ids: batch for batch in packed([short, long], 64, share_up_to=7)}
    assert found[("long",)].paths is None
    assert found[("short",)].input_ids.tolist() == [[1, 2, 3, 4]]


@pytest.mark.parametrize("pass_", [Pass(objective=lambda outputs: outputs.logits), Pass(stream="calibration")])
def test_passes_with_an_objective_and_calibration_text_keep_plain_rows(pass_: Pass) -> None:
    contrasts = [contrast("a", (1, 2, 3), (1, 2, 4))]
    (batch,) = compose(contrasts, {"a": 4}, 64, pass_=pass_, share_up_to=LONG)
    assert batch.paths is None
    assert batch.input_ids.shape == (2, 3)
