"""Texts that begin alike in one row: tokens of a shared prefix are computed once, behind a tree mask.

A row of the forward holds a forest: every token stands behind the token before it in its text, and texts that begin with the same
tokens share them. A token attends to its own text alone (`tree_mask`) and bears its position in that text, so that a causal model's
activations are those of the texts alone, up to float noise. Source: tree attention as in SpecInfer (Miao et al. 2024, section 4.2),
applied to the variants of a contrast; the layout of rows is this project's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Ids = tuple[int, ...]

ATTENTION_TOKENS = 2048
"""Length at which attention over a row costs as much as all else of a forward: between 1,600 and 2,700 on SmolLM2-135M, CPU."""
ROW = 128
"""Rows are not made longer than this for the sake of sharing, unless two of their texts are."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the tokens of U distinct texts stand in R rows of L tokens."""

    input_ids: Tensor
    """(R, L) int64."""
    attention_mask: Tensor
    """(R, L) int64: 1 where a token is."""
    position_ids: Tensor
    """(R, L) int64: position of each token in its texts."""
    paths: Tensor
    """(U, T) int64: flat index into R*L of each token of each text; -1 behind its end."""
    index_of: dict[Ids, int]
    """Row of `paths` of each text."""


class Packer:
    """Rows that fill up text by text. Deterministic: the layout is a function of the texts and their order."""

    def __init__(self, width: int = 0) -> None:
        """Args: width: rows of so many tokens are filled up; they become longer where sharing pays, or for a longer text."""
        self.width = width
        self.rows: list[int] = []
        """Tokens in each row."""
        self._next: dict[tuple[int, int], int] = {}
        """(node, token) -> the node behind it; -1 is the root."""
        self._token: list[int] = []
        self._row: list[int] = []
        self._column: list[int] = []
        self._position: list[int] = []
        self._texts: dict[Ids, list[int]] = {}

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(self.rows, default=0)

    def add(self, texts: Iterable[Ids]) -> None:
        """Place texts that are not there yet."""
        for ids in texts:
            if ids not in self._texts:
                self._texts[ids] = self._placed(ids)

    def fits(self, texts: Sequence[Ids], max_tokens: int) -> bool:
        """Add texts if the rows then hold at most `max_tokens` tokens with their padding; otherwise nothing is added, and the packer
        must not be used for more texts."""
        rows, nodes, known = list(self.rows), len(self._token), len(self._texts)
        self.add(texts)
        if len(self.rows) * self.longest <= max_tokens:
            return True
        self.rows = rows
        for values in (self._token, self._row, self._column, self._position):
            del values[nodes:]
        for ids in list(self._texts)[known:]:
            del self._texts[ids]
        return False

    def _placed(self, ids: Ids) -> list[int]:
        path: list[int] = []
        node = -1
        for token in ids:
            following = self._next.get((node, token))
            if following is None:
                break
            path.append(node := following)
        if len(path) == len(ids):
            return path
        row = self._row[node] if path and self._joins(self.rows[self._row[node]], len(ids), len(path)) else None
        if row is None:
            path, row = [], self._free(len(ids))
        for token in ids[len(path) :]:
            node = path[-1] if path else -1
            self._next[node, token] = len(self._token)
            self._row.append(row)
            self._column.append(self.rows[row])
            self._position.append(len(path))
            path.append(len(self._token))
            self._token.append(token)
            self.rows[row] += 1
        self.width = max(self.width, self.rows[row])
        return path

    def _joins(self, row: int, length: int, shared: int) -> bool:
        """Whether a text goes behind its prefix into a row of `row` tokens: within the width it costs nothing more."""
        longer = row + length - shared
        if longer <= self.width:
            return True
        attention = longer**2 - row**2 - length**2
        pays = shared * ATTENTION_TOKENS > attention and len(self.rows) * longer < (len(self.rows) + 1) * self.longest
        return pays and longer <= max(ROW, 2 * length)

    def _free(self, length: int) -> int:
        """The first row with room for a whole text, or a new one."""
        for row, taken in enumerate(self.rows):
            if taken + length <= self.width:
                return row
        self.rows.append(0)
        return len(self.rows) - 1

    def layout(self, pad: int) -> Layout:
        """The rows as tensors, padded on the right."""
        shape = (len(self.rows), self.longest)
        columns = torch.tensor(self._column)
        flat = torch.tensor(self._row) * shape[1] + columns
        input_ids, mask, position = (
            torch.full(shape, pad),
            torch.zeros(shape, dtype=torch.long),
            torch.zeros(shape, dtype=torch.long),
        )
        input_ids.view(-1)[flat] = torch.tensor(self._token)
        mask.view(-1)[flat] = 1
        position.view(-1)[flat] = torch.tensor(self._position)
        paths = torch.full((len(self._texts), max(map(len, self._texts))), -1)
        for text, nodes in enumerate(self._texts.values()):
            paths[text, : len(nodes)] = flat[nodes]
        index_of = {ids: index for index, ids in enumerate(self._texts)}
        return Layout(input_ids=input_ids, attention_mask=mask, position_ids=position, paths=paths, index_of=index_of)


def width_of(texts: Iterable[Ids]) -> int:
    """Tokens of the longest row that these texts want where they are alone."""
    packer = Packer()
    packer.add(texts)
    return packer.longest


def tree_mask(paths_UT: Tensor, rows: int, length: int) -> Tensor:
    """Which tokens of its row a token attends to: those before it in its own text, and itself.

    Args:
        paths_UT: `Layout.paths`.

    Returns: (R, 1, L, L) bool; a padding token attends to itself, so that no softmax is empty.
    """
    device = paths_UT.device
    mask = torch.eye(length, dtype=torch.bool, device=device).repeat(rows, 1, 1)
    exists_UT = paths_UT >= 0
    before_TT = torch.ones(paths_UT.shape[1], paths_UT.shape[1], dtype=torch.bool, device=device).tril()
    pairs_UTT = exists_UT.unsqueeze(2) & exists_UT.unsqueeze(1) & before_TT
    cells_UTT = paths_UT.unsqueeze(2) * length + torch.remainder(paths_UT, length).unsqueeze(1)
    mask.view(-1)[cells_UTT.where(pairs_UTT, 0)] = True  # cell 0 is the first token's own
    return mask.unsqueeze(1)
