"""The contrasts of one micro-batch as tensors: a row a text, or packed rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairprune_framework.api.interfaces import Pass
from fairprune_framework.auditing.micro_batch import BatchId, MicroBatch
from fairprune_framework.auditing.packing import Packer
from fairprune_framework.contrasts.alignment import AlignedContrast


def row_keys(contrast: AlignedContrast, pass_: Pass) -> list[object]:
    """What makes two variants one row of the forward: equal tokens, or under an objective nothing."""
    if pass_.objective is None:
        return [tokens.ids for tokens in contrast.variants]
    return [(contrast.id, index) for index in range(len(contrast.variants))]


def collate(
    batch: Sequence[AlignedContrast],
    values: int,
    pad: int,
    pass_: Pass,
    batch_id: BatchId | None = None,
    packed: int | None = None,
) -> MicroBatch:
    if packed is not None:
        packer = Packer(packed)
        for contrast in batch:
            packer.add([tokens.ids for tokens in contrast.variants])
        layout = packer.layout(pad)
        text_of = [[layout.index_of[tokens.ids] for tokens in contrast.variants] for contrast in batch]
        tensors = {name: getattr(layout, name) for name in ("input_ids", "attention_mask", "position_ids", "paths")}
        return _with_tables(batch, values, pass_, text_of, batch_id, **tensors)
    rows: dict[object, int] = {}
    texts: list[tuple[int, ...]] = []
    row_of: list[list[int]] = []
    for contrast in batch:
        row_of.append([])
        for key, tokens in zip(row_keys(contrast, pass_), contrast.variants, strict=True):
            if key not in rows:
                rows[key] = len(rows)
                texts.append(tokens.ids)
            row_of[-1].append(rows[key])
    lengths = torch.tensor([len(ids) for ids in texts])
    present = torch.arange(int(lengths.max())) < lengths[:, None]
    input_ids = torch.full(present.shape, pad, dtype=torch.long)
    input_ids[present] = torch.from_numpy(np.fromiter(chain.from_iterable(texts), np.int64, int(lengths.sum())))
    tensors = {"input_ids": input_ids, "attention_mask": present.long()}
    return _with_tables(batch, values, pass_, row_of, batch_id, **tensors, padded=not bool(present.all()))


def _with_tables(
    batch: Sequence[AlignedContrast],
    values: int,
    pass_: Pass,
    text_of: Sequence[list[int]],
    batch_id: BatchId | None,
    **tensors: Any,
) -> MicroBatch:
    """Rows with what is known of the contrasts in them; `text_of`: the text of each variant of each contrast."""
    most = max(len(contrast.variants) for contrast in batch)
    rare = None
    if pass_.stream == "calibration":
        rare = torch.zeros((len(batch), most, tensors["input_ids"].shape[1]), dtype=torch.bool)
        for c, contrast in enumerate(batch):
            rare[c, 0, list(contrast.variants[0].rare)] = True

    right = None
    if pass_.stream == "legitimate":
        words = max(len(tokens) for contrast in batch for tokens in contrast.right)
        right = torch.full((len(batch), most, words), -1, dtype=torch.long)
        for c, contrast in enumerate(batch):
            for v, tokens in enumerate(contrast.right):
                right[c, v, : len(tokens)] = torch.tensor(tokens)

    def table(cell: Any, absent: int) -> Tensor:
        return torch.tensor([[cell(c, v) if v < len(c.variants) else absent for v in range(most)] for c in batch])

    return MicroBatch(
        **tensors,
        text=torch.tensor([texts + [0] * (most - len(texts)) for texts in text_of]),
        present=table(lambda c, v: 1, 0).bool(),
        length=table(lambda c, v: len(c.variants[v].ids), 0),
        start=table(lambda c, v: c.variants[v].start, 0),
        end=table(lambda c, v: c.variants[v].end, 0),
        attribute=table(lambda c, v: c.attributes[v], -1),
        lean=table(lambda c, v: 0 if c.stereotyping is None else (1 if v == c.stereotyping else -1), 0),
        rare=rare,
        right=right,
        categories=tuple(contrast.category for contrast in batch),
        values=values,
        ids=tuple(contrast.id for contrast in batch),
        pass_of=partial(_always, pass_),
        clusters=tuple(contrast.template_id for contrast in batch),
        batch_id=batch_id,
    )


def _always(pass_: Pass) -> Pass:
    return pass_
