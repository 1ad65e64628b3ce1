"""A micro-batch, the tensors of whole contrasts, and its id within an audit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fairprune_framework.api.interfaces import Pass
from fairprune_framework.api.types import Stream


class BatchId(NamedTuple):
    """The id of a micro-batch of an audit: independent of the number of ranks."""

    pass_: int
    """Index of the pass."""
    window: int
    number: int
    """Index in its window."""
    total: int
    """Micro-batches of its window."""
    content: int
    """`BatchSpec.content`."""


@dataclass(kw_only=True, eq=False)  # not frozen: under `precision="bf16-true"` Lightning refuses frozen dataclasses
class MicroBatch:
    """Whole contrasts, of any categories: U distinct texts in R rows, padded on the right to L tokens. Treated as immutable.

    Plain rows: R = U, row u holds text u. Packed rows (`paths` is given): texts that begin alike stand in one row behind their prefix;
    such a batch needs the mask of `packing.tree_mask` and its `position_ids`.
    """

    input_ids: Tensor
    """(R, L) int64."""
    attention_mask: Tensor
    """(R, L) int64: 1 where a token is."""
    text: Tensor
    """(C, V) int64: which of the U texts each variant is; 0 for an absent variant."""
    present: Tensor
    """(C, V) bool."""
    length: Tensor
    """(C, V) int64: tokens of each variant."""
    start: Tensor
    """(C, V) int64: first attribute token."""
    end: Tensor
    """(C, V) int64: one past the last attribute token; the matched suffix begins here."""
    attribute: Tensor
    """(C, V) int64: index into the category's vocabulary; -1 for an absent variant."""
    lean: Tensor
    """(C, V) int64: 1 for a stereotyping variant, -1 for its counterpart, 0 where a contrast names neither."""
    categories: tuple[str, ...]
    """Category of each contrast."""
    values: int
    """Size of the largest vocabulary of the set: the same in all micro-batches."""
    ids: tuple[str, ...]
    rare: Tensor | None = None
    """(C, V, L) bool: positions of rare tokens, as `Tokens.rare`; of calibration text alone."""
    right: Tensor | None = None
    """(C, V, W) int64: right next tokens of each variant, -1 behind the last; of legitimate contrasts alone."""
    clusters: tuple[str, ...] = ()
    """Template id of each contrast: with its category, the unit of resampling."""
    batch_id: BatchId | None = None
    """Its id in the audit; None outside of one."""
    padded: bool = True
    """Some row is shorter than the others: a forward needs the mask. Kept beside it, since to ask an accelerator is to wait for it."""
    idle: bool = False
    """Computed only because other ranks compute in lockstep: nothing of it is summed."""
    position_ids: Tensor | None = None
    """(R, L) int64 where rows are packed: position of each token in its texts."""
    paths: Tensor | None = None
    """(U, T) int64 where rows are packed: flat index into R*L of each token of each text; -1 behind its end."""
    pass_of: Callable[[], Pass] = Pass
    """Returns the pass that computes it. A call, since Lightning looks into the dataclasses of a batch and refuses frozen ones."""

    @property
    def pass_(self) -> Pass:
        """The pass that computes it."""
        return self.pass_of()

    @property
    def stream(self) -> Stream:
        """The stream that it belongs to."""
        return self.pass_.stream

    @property
    def tokens(self) -> int:
        """Padded tokens of the forward."""
        return self.input_ids.numel()

    @property
    def places(self) -> Tensor:
        """(U, T) int64: flat index into R*L of each token of each text; -1 behind its end."""
        if self.paths is not None:
            return self.paths
        flat = torch.arange(self.tokens, device=self.input_ids.device).view_as(self.input_ids)
        return flat.masked_fill(self.attention_mask == 0, -1)

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        """Rows and columns of the last token of each text, (U,) each."""
        places_UT = self.places
        last_U = places_UT.gather(1, (places_UT >= 0).sum(1, keepdim=True) - 1).squeeze(1)
        return last_U // self.input_ids.shape[1], last_U % self.input_ids.shape[1]

    def halves(self) -> list[MicroBatch]:
        """Two micro-batches with half of the contrasts each; raises `torch.OutOfMemoryError` for one contrast."""
        if len(self.ids) < 2:
            raise torch.OutOfMemoryError(f"contrast {self.ids[0]!r} alone, {self.tokens} tokens, does not fit into memory")
        middle = len(self.ids) // 2
        return [self._part(slice(None, middle)), self._part(slice(middle, None))]

    def _part(self, some: slice) -> MicroBatch:
        present, text = self.present[some], self.text[some]
        texts = torch.unique(text[present])
        input_ids, mask = self.input_ids, self.attention_mask
        if self.paths is not None:  # parts have a row a text: what ran out of memory need not be fast
            mask = (self.paths >= 0).long()
            input_ids = input_ids.flatten()[self.paths.clamp_min(0)]
        row_of = torch.zeros(len(mask), dtype=torch.long, device=text.device)
        row_of[texts] = torch.arange(len(texts), device=text.device)
        lengths = mask[texts].sum(1)
        width = int(lengths.max())
        return replace(
            self,
            padded=bool((lengths < width).any()),
            input_ids=input_ids[texts, :width],
            attention_mask=mask[texts, :width],
            position_ids=None,
            paths=None,
            text=row_of[text] * present,
            present=present,
            length=self.length[some],
            start=self.start[some],
            end=self.end[some],
            attribute=self.attribute[some],
            lean=self.lean[some],
            rare=None if self.rare is None else self.rare[some, :, :width],
            right=None if self.right is None else self.right[some],
            categories=self.categories[some],
            clusters=self.clusters[some],
            ids=self.ids[some],
            batch_id=None,
        )

    def to(self, device: Any, **kwargs: Any) -> MicroBatch:
        """A copy on a device."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {k: v.to(device, **kwargs) for k, v in values.items() if isinstance(v, Tensor)}
        return replace(self, **moved)
