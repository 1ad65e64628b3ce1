"""Tensors of a micro-batch against the contrasts that they were made of, plain and packed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from fairprune_framework.api.interfaces import Pass
from fairprune_framework.auditing.collation import collate, row_keys
from fairprune_framework.auditing.micro_batch import MicroBatch
from fairprune_framework.contrasts.alignment import AlignedContrast, Tokens

PAD = 99


@dataclass(frozen=True)
class Objective:
    """Any objective."""

    def __call__(self, out: Any) -> Any:
        return out


def contrast(identity: str, *variants: tuple[tuple[int, ...], int, int], **more: Any) -> AlignedContrast:
    values = {"category": "a", "template_id": f"t{identity}", "control": False, "split": None, **more}
    tokens = tuple(Tokens(ids=ids, start=start, end=end) for ids, start, end in variants)
    return AlignedContrast(id=identity, variants=tokens, attributes=tuple(range(3, 3 + len(variants))), **values)


SHARED = ((1, 2, 3), 1, 2)
CONTRASTS = [
    contrast("x", SHARED, ((1, 5, 6, 3), 1, 3)),
    contrast("y", ((1, 2, 9, 9, 9), 2, 3), SHARED, ((1, 8), 1, 2), category="b"),
    contrast("z", ((7,), 0, 1), ((8,), 0, 1), stereotyping=1),
]


def texts_of(batch: MicroBatch) -> list[list[tuple[int, ...]]]:
    """The tokens of each variant, read from the tensors."""
    found = []
    for c in range(len(batch.ids)):
        found.append([])
        for v in range(batch.present.shape[1]):
            if batch.present[c, v]:
                length, text = int(batch.length[c, v]), int(batch.text[c, v])
                row = batch.input_ids.flatten()[batch.paths[text]] if batch.paths is not None else batch.input_ids[text]
                found[-1].append(tuple(row[:length].tolist()))
    return found


@pytest.mark.parametrize(("packed", "pass_"), [(None, Pass()), (0, Pass()), (12, Pass()), (None, Pass(objective=Objective()))])
def test_every_variant_is_there(packed: int | None, pass_: Pass) -> None:
    batch = collate(CONTRASTS, 9, PAD, pass_, packed=packed)
    assert texts_of(batch) == [[tokens.ids for tokens in one.variants] for one in CONTRASTS]
    assert (batch.ids, batch.categories, batch.clusters) == (("x", "y", "z"), ("a", "b", "a"), ("tx", "ty", "tz"))
    assert batch.start.tolist() == [[1, 1, 0], [2, 1, 1], [0, 0, 0]]
    assert batch.end.tolist() == [[2, 3, 0], [3, 2, 2], [1, 1, 0]]
    assert batch.attribute.tolist() == [[3, 4, -1], [3, 4, 5], [3, 4, -1]]
    assert batch.lean.tolist() == [[0, 0, 0], [0, 0, 0], [-1, 1, 0]]
    assert batch.present.tolist() == [[True, True, False], [True] * 3, [True, True, False]]
    assert (batch.values, batch.pass_, batch.rare) == (9, pass_, None)
    assert (batch.input_ids == PAD).equal(batch.attention_mask == 0)
    assert batch.padded


def test_rows_of_one_length_are_known_to_need_no_mask() -> None:
    batch = collate([CONTRASTS[2], contrast("w", ((1,), 0, 1), ((2,), 0, 1))], 9, PAD, Pass())
    assert batch.attention_mask.all()
    assert not batch.padded


def test_equal_texts_are_one_row_unless_they_carry_gradients() -> None:
    assert len(collate(CONTRASTS, 9, PAD, Pass()).input_ids) == 6
    assert len(collate(CONTRASTS, 9, PAD, Pass(objective=Objective())).input_ids) == 7
    assert row_keys(CONTRASTS[0], Pass()) == [(1, 2, 3), (1, 5, 6, 3)]
    assert row_keys(CONTRASTS[0], Pass(objective=Objective())) == [("x", 0), ("x", 1)]


def test_packed_rows_hold_a_shared_prefix_once() -> None:
    batch = collate(CONTRASTS, 9, PAD, Pass(), packed=12)
    assert batch.position_ids is not None
    distinct = {ids[: i + 1] for one in CONTRASTS for ids in (t.ids for t in one.variants) for i in range(len(ids))}
    assert int(batch.attention_mask.sum()) == len(distinct)
    assert batch.input_ids.numel() < collate(CONTRASTS, 9, PAD, Pass()).input_ids.numel()


def test_rare_places_of_calibration_text() -> None:
    documents = [
        AlignedContrast(
            id=str(i),
            category="",
            template_id="",
            control=False,
            split=None,
            variants=(Tokens(ids=(1,) * length, start=0, end=0, rare=rare),),
            attributes=(0,),
        )
        for i, (length, rare) in enumerate([(4, (0, 3)), (2, ()), (3, (1,))])
    ]
    batch = collate(documents, 1, PAD, Pass(stream="calibration"))
    assert batch.rare is not None
    assert batch.rare.shape == (3, 1, 4)
    assert batch.rare.nonzero().tolist() == [[0, 0, 0], [0, 0, 3], [2, 0, 1]]
    assert batch.stream == "calibration"
    assert torch.equal(batch.length, torch.tensor([[4], [2], [3]]))
