"""What stands before the numbers of a GGUF file, read within its size: the reader of the package `gguf` goes as far as a file's counts say,
also where the file ended long before, for hours and with all memory.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from fairprune_framework.errors import UserError, shown
from fairprune_framework.models.untrusted import refuse_larger
from fairprune_framework.utilities.files import unreadable

MOST_ENTRIES = 20_000_000
"""Of all lists together: a tokenizer has some 100,000 tokens, and as many merges."""
_MOST_DIMENSIONS = 8
_MOST_DEPTH = 4
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Type of a value -> its code in `struct`."""
_TEXT, _LIST = 8, 9
_FIELDS = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "vocab_size": "vocab_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "expert_count": "num_experts",
    "expert_feed_forward_length": "moe_intermediate_size",
}
"""Key below the architecture's -> field of a config."""


def refuse_damaged_gguf(path: Path, name: str) -> None:
    """Look at a GGUF file before `gguf` and transformers do.

    Args:
        name: what messages call the model.

    Raises:
        UserError: it is no GGUF file, ends before what it names, or asks for a larger model than its numbers make.
    """
    if (reason := unreadable(path)) is not None:
        raise UserError(f"cannot load the model {name!r}: {path.name} {reason}")
    try:
        with path.open("rb") as file:
            header = _read(file, path.stat().st_size)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load the model {name!r}: {path.name} is damaged: {error}") from error
    config = {
        known: header.values[f"{header.values.get('general.architecture')}.{key}"]
        for key, known in _FIELDS.items()
        if isinstance(header.values.get(f"{header.values.get('general.architecture')}.{key}"), int)
    }
    tokens = header.lengths.get("tokenizer.ggml.tokens")
    refuse_larger(config | ({} if tokens is None else {"vocab_size": tokens}), header.shapes, name)


@dataclass
class _Header:
    values: dict[str, Any] = field(default_factory=dict)
    """Key -> a number or a text."""
    lengths: dict[str, int] = field(default_factory=dict)
    """Key -> entries of a list."""
    shapes: dict[str, list[int]] = field(default_factory=dict)


def _read(file: BinaryIO, size: int) -> _Header:
    """Raises `ValueError`."""
    if file.read(4) != b"GGUF":
        raise ValueError("it does not begin as a GGUF file does")
    version = file.read(4)
    order = next((order for order in "<>" if version in (struct.pack(f"{order}I", known) for known in (2, 3))), None)
    if order is None:
        raise ValueError(f"its version must be 2 or 3. Got {int.from_bytes(version, 'little')} instead")
    reader = _Reader(file, size, order)
    tensors, keys = reader.number("Q"), reader.number("Q")
    header = _Header()
    for _ in range(keys):
        key = reader.text()
        value = reader.value(reader.number("I"))
        if isinstance(value, _Length):
            header.lengths[key] = value
        else:
            header.values[key] = value
    ends = []
    for _ in range(tensors):
        tensor = reader.text()
        dimensions = reader.number("I")
        if dimensions > _MOST_DIMENSIONS:
            raise ValueError(f"the tensor {shown(tensor)} has {dimensions} dimensions")
        header.shapes[tensor] = [reader.number("Q") for _ in range(dimensions)]
        ends.append((tensor, _bytes_of(tensor, reader.number("I"), header.shapes[tensor]) + reader.number("Q")))
    alignment = header.values.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
        raise ValueError(f"general.alignment: {shown(alignment)}")
    begin = -(-file.tell() // alignment) * alignment
    if missing := next((tensor for tensor, end in ends if begin + end > size), None):
        raise ValueError(f"it ends before the tensor {shown(missing)} does ({size:,} bytes)")
    return header


def _bytes_of(tensor: str, kind: int, shape: list[int]) -> int:
    import gguf

    try:
        block, stored = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    except (KeyError, ValueError):
        raise ValueError(f"the tensor {shown(tensor)} is of an unknown type, {kind}") from None
    return math.prod(shape) // block * stored


class _Length(int):
    """Entries of a list."""


class _Reader:
    """Numbers and texts of a file, never beyond its end."""

    def __init__(self, file: BinaryIO, size: int, order: str) -> None:
        self.file, self.size, self.order = file, size, order
        self.entries = 0

    def bytes(self, count: int) -> bytes:
        if count > self.size - self.file.tell():
            raise ValueError(f"it ends before what it names does ({self.size:,} bytes)")
        return self.file.read(count)

    def number(self, code: str) -> Any:
        form = self.order + code
        return struct.unpack(form, self.bytes(struct.calcsize(form)))[0]

    def text(self) -> str:
        raw = self.bytes(self.number("Q"))
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise ValueError(f"a text is not UTF-8: {shown(raw)}") from None

    def value(self, kind: int, depth: int = 0) -> Any:
        """A number, a text, or how many entries a list has."""
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _TEXT:
            return self.text()
        if kind != _LIST or depth == _MOST_DEPTH:
            raise ValueError(f"a value is of an unknown type, {kind}" if kind != _LIST else "lists inside one another")
        inner, count = self.number("I"), self.number("Q")
        self.entries += count
        if self.entries > MOST_ENTRIES:
            raise ValueError(f"its lists have more than {MOST_ENTRIES:,} entries")
        if inner in _SCALARS:
            self.bytes(count * struct.calcsize(f"<{_SCALARS[inner]}"))
        else:
            for _ in range(count):
                if inner == _TEXT:
                    self.bytes(self.number("Q"))  # of whatever encoding: tokens may be any bytes
                else:
                    self.value(inner, depth + 1)
        return _Length(count)
