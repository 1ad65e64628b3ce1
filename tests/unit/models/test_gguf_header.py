"""GGUF files written by hand and by `gguf`: what is whole is let through, what is damaged is one line, at once and in little memory."""

from __future__ import annotations

import struct
import time
import tracemalloc
from pathlib import Path

import pytest

from fairprune_framework.errors import UserError
from fairprune_framework.models.gguf_header import MOST_ENTRIES, refuse_damaged_gguf
from fairprune_framework.models.loading import load_model, load_tokenizer

pytest.importorskip("gguf")

HUGE = 2**62


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def number(key: str, value: int) -> bytes:
    return text(key) + struct.pack("<II", 4, value)


def listed(key: str, inner: int, count: int, content: bytes) -> bytes:
    return text(key) + struct.pack("<IIQ", 9, inner, count) + content


ARCHITECTURE = text("general.architecture") + struct.pack("<I", 8) + text("llama")
SIZES = {"llama.block_count": 1, "llama.embedding_length": 4, "llama.feed_forward_length": 8}
TOKENS = listed("tokenizer.ggml.tokens", 8, 3, text("a") + text("b") + text(b"\xff"))
SCORES = listed("tokenizer.ggml.scores", 6, 3, struct.pack("<3f", 1, 2, 3))


def tensor(name: str = "blk.0.ffn_up.weight", shape: tuple[int, ...] = (4, 8), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def gguf_of(
    *entries: bytes,
    tensors: tuple[bytes, ...] = (tensor(),),
    counts: tuple[int, int] | None = None,
    version: int = 3,
    data: int = 128,
) -> bytes:
    counts = (len(tensors), len(entries)) if counts is None else counts
    head = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(entries) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + bytes(data)


def entries(**sizes: int) -> list[bytes]:
    known = SIZES | {f"llama.{name}": value for name, value in sizes.items()}
    return [ARCHITECTURE, *(number(key, value) for key, value in known.items()), TOKENS, SCORES]


@pytest.mark.parametrize("version", [2, 3])
def test_what_is_whole_is_let_through(version: int, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_of(*entries(), version=version))
    refuse_damaged_gguf(path, "m")


def test_what_gguf_writes_is_let_through(tmp_path: Path) -> None:
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_block_count(1)
    writer.add_embedding_length(32)
    writer.add_token_list(["a", "b"])
    writer.add_array("numbers", [1, 2, 3])
    writer.add_array("nested", [[1, 2], [3]])
    writer.add_bool("flag", True)
    writer.add_float64("wide", 0.5)
    writer.add_tensor("blk.0.attn_q.weight", np.zeros((32, 32), np.float32))
    writer.add_tensor("blk.0.attn_k.weight", np.zeros((32, 34), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    refuse_damaged_gguf(tmp_path / "m.gguf", "m")
    whole = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(whole[:-64])
    with pytest.raises(UserError, match=r"ends before the tensor 'blk\.0\.attn_k\.weight' does"):
        refuse_damaged_gguf(tmp_path / "m.gguf", "m")


DAMAGED = {
    "nothing": (b"", "does not begin as a GGUF file"),
    "another magic": (b"GGML" + gguf_of(*entries())[4:], "does not begin as a GGUF file"),
    "another version": (gguf_of(*entries(), version=1), "must be 2 or 3. Got 1"),
    "only magic": (b"GGUF", "must be 2 or 3"),
    "keys without end": (gguf_of(*entries(), counts=(1, HUGE)), "ends before|unknown type|not UTF-8"),
    "tensors without end": (gguf_of(*entries(), counts=(HUGE, 7)), "ends before|dimensions|unknown type"),
    "a key without end": (gguf_of(struct.pack("<Q", HUGE) + b"x"), "ends before what it names"),
    "a text without end": (gguf_of(text("k") + struct.pack("<IQ", 8, HUGE)), "ends before what it names"),
    "a list of numbers without end": (gguf_of(listed("k", 4, MOST_ENTRIES, b"")), "ends before what it names"),
    "a list beyond all": (gguf_of(listed("k", 0, HUGE, b"")), "more than 20,000,000 entries"),
    "a list of texts without end": (gguf_of(listed("k", 8, 10_000_000, b"")), "ends before"),
    "lists in lists": (gguf_of(listed("k", 9, 1, struct.pack("<IQ", 9, 1) * 50)), "lists inside one another"),
    "a value of no type": (gguf_of(text("k") + struct.pack("<I", 99)), "unknown type, 99"),
    "a key that is no text": (gguf_of(text(b"\xff\xfe") + struct.pack("<II", 4, 1)), "not UTF-8"),
    "many dimensions": (gguf_of(tensors=(text("t") + struct.pack("<I", 2**31),)), "dimensions"),
    "a tensor of no type": (gguf_of(tensors=(tensor(kind=999),)), "unknown type, 999"),
    "a large tensor": (gguf_of(tensors=(tensor(shape=(2**40, 2**20)),)), "ends before the tensor"),
    "a tensor far away": (gguf_of(tensors=(tensor(offset=HUGE),)), "ends before the tensor"),
    "an alignment of nothing": (gguf_of(number("general.alignment", 0)), "general.alignment"),
    "many layers": (gguf_of(*entries(block_count=1_000_000)), "num_hidden_layers: 1000000, more than its weights hold"),
    "wide layers": (gguf_of(*entries(embedding_length=2**31)), "hidden_size: 2147483648, more than its weights hold"),
    "many neurons": (gguf_of(*entries(feed_forward_length=30)), "intermediate_size: 30 and hidden_size: 4"),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGED)
def test_what_is_damaged_is_one_line_at_once(what: str, tmp_path: Path) -> None:
    content, expected = DAMAGED[what]
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    began = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=expected) as caught:
            refuse_damaged_gguf(path, str(path))
        largest = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.process_time() - began < 5
    assert largest < 20e6
    assert "\n" not in str(caught.value)
    assert len(str(caught.value).replace(str(tmp_path), "")) < 500


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole, path = gguf_of(*entries()), tmp_path / "m.gguf"
    for size in range(0, len(whole), 3):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError):
            refuse_damaged_gguf(path, "m")


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_models_and_tokenizers_are_looked_at_first(load: object, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_of(listed("k", 8, 10_000_000, b"")))
    assert callable(load)
    with pytest.raises(UserError, match="is damaged: it ends before"):
        load(str(path))
