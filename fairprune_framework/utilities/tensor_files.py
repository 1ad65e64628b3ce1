"""Safetensors files that need not fit in memory: written and read one tensor at a time."""

from __future__ import annotations

import json
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from fairprune_framework.errors import UserError
from fairprune_framework.utilities import stopping
from fairprune_framework.utilities.files import atomic

DTYPES = {
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names in the format, in the order in which safetensors writes tensors, so that equal content gives equal bytes."""


class Tensors(Mapping[str, Tensor]):
    """Tensors by name, each read or made when it is asked for, and never kept."""

    metadata: dict[str, str] | None
    """Of the file that holds them."""

    @abstractmethod
    def like(self, name: str) -> Tensor:
        """A tensor's shape and dtype, on the meta device."""


class TensorFile(Tensors):
    """The tensors of a file by name, each read when it is asked for and mapped from the disk, never kept."""

    def __init__(self, path: Path) -> None:
        from safetensors import safe_open

        self.path = path
        with safe_open(path, framework="pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            self._kinds = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in parts.items()}
            self.metadata = file.metadata()

    def __getitem__(self, name: str) -> Tensor:
        from safetensors import safe_open

        if name not in self._kinds:
            raise KeyError(name)
        with safe_open(
            self.path, framework="pt"
        ) as file:  # opened anew: what was read of a mapping counts as memory until it is closed
            tensor: Tensor = file.get_tensor(name)
            return tensor

    def like(self, name: str) -> Tensor:
        """A tensor's shape and dtype, on the meta device."""
        shape, kind = self._kinds[name]
        dtype = next((dtype for dtype, own in DTYPES.items() if own == kind), None)
        return torch.empty_like(self[name], device="meta") if dtype is None else torch.empty(shape, dtype=dtype, device="meta")

    def __iter__(self) -> Iterator[str]:
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)


def write_one_by_one(
    path: Path, like: Mapping[str, Tensor], read: Callable[[str], Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a file atomically, byte by byte as `safetensors.torch.save_file` does, with one tensor in memory.

    Args:
        like: name -> a tensor of its shape and dtype, which may be on the meta device.
        read: gives the values of a name, of that shape and dtype.

    Raises:
        UserError: a dtype that the format, or this writer, does not know.
    """
    for name, tensor in like.items():
        if tensor.dtype not in DTYPES:
            raise UserError(f"{name} is {str(tensor.dtype).removeprefix('torch.')}, which is not written tensor by tensor")
    places = {dtype: place for place, dtype in enumerate(DTYPES)}
    names = sorted(like, key=lambda name: (places[like[name].dtype], name))
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name in names:
        tensor = like[name]
        begin, end = end, end + math.prod(tensor.shape) * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    with atomic(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            stopping.check()
            value = read(name)
            assert (value.shape, value.dtype) == (like[name].shape, like[name].dtype), name
            file.write(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            del value
