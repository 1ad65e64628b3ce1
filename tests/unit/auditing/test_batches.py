"""The composer of micro-batches, by properties that hold for every prompt set."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairprune_framework.auditing import batches
from fairprune_framework.auditing.batches import compose, composition_hash
from fairprune_framework.auditing.micro_batch import MicroBatch
from fairprune_framework.contrasts.alignment import AlignedContrast, Tokens

TEXT = st.lists(st.integers(1, 9), min_size=1, max_size=12).map(tuple)
POOL = st.lists(TEXT, min_size=2, max_size=12, unique=True)


@st.composite
def prompt_sets(draw: st.DrawFn) -> list[AlignedContrast]:
    """Contrasts of two categories over a small pool of texts, so that many are shared."""
    pool = draw(POOL)
    found = []
    for number in range(draw(st.integers(1, 25))):
        texts = draw(st.lists(st.sampled_from(pool), min_size=2, max_size=min(4, len(pool)), unique=True))
        suffix = draw(st.integers(0, min(map(len, texts))))
        variants = tuple(Tokens(ids=ids, start=draw(st.integers(0, len(ids) - suffix)), end=len(ids) - suffix) for ids in texts)
        found.append(
            AlignedContrast(
                id=str(number),
                category=draw(st.sampled_from(["a", "b"])),
                template_id="t",
                control=False,
                split=None,
                variants=variants,
                attributes=tuple(range(len(texts))),
            )
        )
    return found


def made(contrasts: list[AlignedContrast], max_tokens: int) -> list[MicroBatch]:
    return list(compose(contrasts, {"a": 4, "b": 4}, max_tokens))


@given(prompt_sets(), st.integers(2, 200))
@settings(max_examples=60, deadline=None)
def test_every_contrast_once_whole_and_within_the_budget(contrasts: list[AlignedContrast], max_tokens: int) -> None:
    found = made(contrasts, max_tokens)
    assert sorted(identity for batch in found for identity in batch.ids) == sorted(contrast.id for contrast in contrasts)
    known = {contrast.id: contrast for contrast in contrasts}
    for batch in found:
        assert batch.tokens <= max_tokens or len(batch.ids) == 1
        for c, identity in enumerate(batch.ids):
            contrast = known[identity]
            assert batch.categories[c] == contrast.category
            assert batch.present[c].tolist() == [v < len(contrast.variants) for v in range(batch.present.shape[1])]
            for v, tokens in enumerate(contrast.variants):
                row = int(batch.text[c, v])
                mask = batch.attention_mask[row].bool()
                assert tuple(batch.input_ids[row][mask].tolist()) == tokens.ids
                assert not mask[len(tokens.ids) :].any()
                assert [int(x[c, v]) for x in (batch.length, batch.start, batch.end)] == [
                    len(tokens.ids),
                    tokens.start,
                    tokens.end,
                ]
                assert int(batch.attribute[c, v]) == contrast.attributes[v]
            assert (batch.attribute[c] >= 0).equal(batch.present[c])


@given(prompt_sets(), st.integers(2, 200))
@settings(max_examples=40, deadline=None)
def test_no_text_twice_in_a_micro_batch(contrasts: list[AlignedContrast], max_tokens: int) -> None:
    for batch in made(contrasts, max_tokens):
        rows = [tuple(ids[mask.bool()].tolist()) for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)]
        assert len(rows) == len(set(rows))


@given(prompt_sets(), st.integers(2, 200))
@settings(max_examples=40, deadline=None)
def test_deterministic(contrasts: list[AlignedContrast], max_tokens: int) -> None:
    one, two = made(contrasts, max_tokens), made(list(contrasts), max_tokens)
    assert composition_hash(one) == composition_hash(two)
    assert all(a.input_ids.equal(b.input_ids) and a.text.equal(b.text) for a, b in zip(one, two, strict=True))


@given(prompt_sets())
@settings(max_examples=50, deadline=None)
def test_one_micro_batch_where_there_is_room(contrasts: list[AlignedContrast]) -> None:
    (batch,) = made(contrasts, 10**6)
    assert batch.input_ids.shape[0] == len({tokens.ids for contrast in contrasts for tokens in contrast.variants})


def test_windows_bound_what_is_looked_at_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "WINDOW", 3)
    contrasts = [
        AlignedContrast(
            id=str(i),
            category="a",
            template_id="t",
            control=False,
            split=None,
            variants=(Tokens(ids=(1, i), start=1, end=2), Tokens(ids=(2, i), start=1, end=2)),
            attributes=(0, 1),
        )
        for i in range(10)
    ]
    found = made(contrasts, 10**6)
    assert [len(batch.ids) for batch in found] == [3, 3, 3, 1]


def test_the_hash_sees_who_stands_together_and_how_far_it_is_padded() -> None:
    def batch(*lengths: int) -> MicroBatch:
        contrast = AlignedContrast(
            id="x",
            category="a",
            template_id="t",
            control=False,
            split=None,
            variants=tuple(Tokens(ids=(i,) * n, start=0, end=n) for i, n in enumerate(lengths)),
            attributes=(0, 1),
        )
        return made([contrast], 100)[0]

    hashes = {composition_hash([batch(2, 3)]), composition_hash([batch(2, 4)]), composition_hash([batch(2, 3), batch(2, 4)])}
    assert len(hashes) == 3


def test_moving_keeps_everything() -> None:
    (batch,) = made(
        [
            AlignedContrast(
                id="x",
                category="a",
                template_id="t",
                control=False,
                split=None,
                variants=(Tokens(ids=(1, 2), start=0, end=1), Tokens(ids=(3, 2), start=0, end=1)),
                attributes=(0, 1),
            )
        ],
        100,
    )
    moved = batch.to(torch.device("cpu"))
    assert moved is not batch
    assert moved.ids == batch.ids
    assert moved.input_ids.equal(batch.input_ids)


def test_windows_cut_the_stream_and_hold_one_window_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "WINDOW", 4)
    taken: list[int] = []
    variants = tuple(Tokens(ids=(value,), start=0, end=1) for value in (1, 2))

    def stream() -> Iterator[AlignedContrast]:
        for number in range(10):
            taken.append(number)
            yield AlignedContrast(
                id=str(number), category="a", template_id="t", control=False, split=None, variants=variants, attributes=(0, 1)
            )

    windows = batches.windows_of(stream())
    assert [contrast.id for contrast in next(windows)] == ["0", "1", "2", "3"]
    assert taken == [0, 1, 2, 3]
    assert [len(window) for window in windows] == [4, 2]
