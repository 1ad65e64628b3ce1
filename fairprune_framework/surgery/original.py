"""A pruned checkpoint seen as the original that it was: what was taken is put back in each tensor when that is read."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from fairprune_framework.models.blocks import Layout
from fairprune_framework.models.checkpoint import Checkpoint, layout_of
from fairprune_framework.surgery import restoration as kept
from fairprune_framework.surgery import undoing
from fairprune_framework.surgery.in_files import restoration_in_files
from fairprune_framework.utilities.tensor_files import Tensors


class Original(Checkpoint):
    """The original of a pruned checkpoint, by the names and in the shards of that; nothing is written.

    Args:
        pruned: its model becomes, without values, the original; it is of no use afterwards.

    Raises:
        UserError: the restoration is of another model, or does not fit this one.
    """

    def __init__(self, pruned: Checkpoint, restoration: kept.Restoration) -> None:
        undoing.refuse_other(restoration, pruned.digests[0])
        model = pruned.model
        undoing.put_back(model, restoration, lambda name, old: old.new_empty(restoration.shapes[name]))
        dropped = {stored for name in restoration.added for stored in pruned.layout.stored_as[name]}
        names = [name for file in pruned.shards.values() for name in file if name not in dropped]
        layout = layout_of(pruned.folder, model, names)
        taken = restoration_in_files(restoration, layout)
        shards = {shard: _Whole(file, dropped, taken, layout) for shard, file in pruned.shards.items()}
        super().__init__(pruned.folder, model, shards)
        self._restoration = restoration

    def check(self) -> None:
        """Raise `NotTheOriginal` unless it is, bit by bit, what was pruned."""
        if self.digests[1] != self._restoration.weights:
            undoing.refuse_changed(
                self._restoration, {name: kept.bytes_hash(self.parts(name)) for name in self._restoration.slices}
            )
        undoing.refuse_unlike(self._restoration, self.digests[1])


class _Whole(Tensors):
    """The tensors of a shard as they were, in the dtypes of the shard.

    Args:
        dropped: tensors that the original lacks.
        taken: what is put back, by the tensors of the files.
        layout: of the original.
    """

    def __init__(self, file: Tensors, dropped: Collection[str], taken: kept.Restoration, layout: Layout) -> None:
        self._file, self._taken, self._layout = file, taken, layout
        self._names = tuple(name for name in file if name not in dropped)
        self.metadata = file.metadata

    def __getitem__(self, name: str) -> Tensor:
        value = self._file[name]
        if name not in self._taken.slices:
            return value
        with torch.no_grad():
            return undoing.whole(value.to(self._layout.dtype(name)), self._taken, name).to(value.dtype)

    def like(self, name: str) -> Tensor:
        found = self._file.like(name)
        return found.new_empty(self._taken.shapes[name]) if name in self._taken.shapes else found

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
