"""Halves of a micro-batch hold what the whole held."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fairprune_framework.api.interfaces import Pass
from fairprune_framework.auditing.batches import compose
from fairprune_framework.auditing.micro_batch import MicroBatch
from fairprune_framework.calibration.text import Calibration
from fairprune_framework.contrasts.alignment import align_all, vocabularies
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.testing.tiny import tiny_contrasts, tiny_tokenizer

CONTRASTS = tiny_contrasts()
ALIGNED, _ = align_all(CONTRASTS, Encoder(tiny_tokenizer()))
VALUES = {category: len(names) for category, names in vocabularies(CONTRASTS).items()}


def rows(batch: MicroBatch) -> dict[str, Any]:
    """contrast -> all that is known of it, whatever the layout."""
    found = {}
    for c, identity in enumerate(batch.ids):
        texts = []
        for v in range(batch.present.shape[1]):
            if batch.present[c, v]:
                text, length = int(batch.text[c, v]), int(batch.length[c, v])
                ids = batch.input_ids.flatten()[batch.paths[text]] if batch.paths is not None else batch.input_ids[text]
                mask = batch.attention_mask if batch.paths is None else None
                assert mask is None or int(mask[text].sum()) == length
                tables = [int(table[c, v]) for table in (batch.start, batch.end, batch.attribute, batch.lean)]
                rare = None if batch.rare is None else batch.rare[c, v, :length].tolist()
                texts.append((ids[:length].tolist(), tables, rare))
        found[identity] = (texts, batch.categories[c], batch.clusters[c])
    return found


@pytest.mark.parametrize("share_up_to", [0, 512])
def test_halves_hold_every_contrast_once(share_up_to: int) -> None:
    (batch,) = compose(ALIGNED, VALUES, 10**6, share_up_to=share_up_to)
    assert (batch.paths is not None) is bool(share_up_to)
    parts = [batch]
    while any(len(part.ids) > 1 for part in parts):
        parts = [half for part in parts for half in (part.halves() if len(part.ids) > 1 else [part])]
        joined: dict[str, Any] = {}
        for part in parts:
            joined |= rows(part)
            assert part.paths is not None or part.padded is bool((part.attention_mask == 0).any())
        assert joined == rows(batch)
        assert [identity for part in parts for identity in part.ids] == list(batch.ids)
    assert all(part.paths is None for part in parts)
    assert max(part.tokens for part in parts) < batch.tokens


def test_halves_of_calibration_text_keep_its_rare_places() -> None:
    text = Calibration(documents=tuple((5, 6, 7, 8 + i, *range(20, 20 + i)) for i in range(8)), source="x")
    pass_ = Pass(stream="calibration")
    (batch,) = compose(text.as_contrasts(), {"": 1}, 10**6, pass_=pass_)
    one, two = batch.halves()
    assert rows(one) | rows(two) == rows(batch)
    assert one.pass_ == two.pass_ == pass_
    assert batch.rare is not None
    assert batch.rare.any()


def test_one_contrast_has_no_half() -> None:
    (batch, *_) = compose(ALIGNED[:1], VALUES, 10**6)
    with pytest.raises(torch.OutOfMemoryError, match=r"contrast 'tiny-0' alone, \d+ tokens, does not fit"):
        batch.halves()
