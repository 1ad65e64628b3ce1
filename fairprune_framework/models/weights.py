"""Which weights a model has: a fingerprint for every form of the same weights, and a digest of every bit. Both read all values."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn

CHUNK = 1 << 22
"""Values hashed at once: threads share a large matrix, and no whole one is copied."""
THREADS = 8


class Digest:
    """sha256 over tensors, one after another.

    Args:
        exact: over names, dtypes, shapes and every bit; else without dtypes, and over values rounded to bfloat16.
    """

    def __init__(self, *, exact: bool) -> None:
        self._exact, self._state = exact, hashlib.sha256()

    def add(self, name: str, tensor: Tensor) -> None:
        """The next tensor."""
        self.begin(name, tensor)
        self._hash(torch.split(tensor.detach().reshape(-1), CHUNK))

    def begin(self, name: str, like: Tensor) -> None:
        """The next tensor, of the shape and dtype of `like`, of which the values are fed in parts."""
        kind = str(like.dtype) if self._exact else ""
        self._state.update(f"{name} {kind} {tuple(like.shape)}\n".encode())
        self._rest = torch.empty(0, dtype=like.dtype)

    def feed(self, part: Tensor) -> None:
        """The next values of the tensor that was begun; cut into the stretches that `add` would hash."""
        flat = part.detach().reshape(-1)
        missing = CHUNK - len(self._rest) if len(self._rest) else 0
        self._rest, flat = torch.cat([self._rest, flat[:missing].to(self._rest.device)]), flat[missing:]
        if len(self._rest) in (0, CHUNK):
            whole = len(flat) // CHUNK * CHUNK
            self._hash([*torch.split(self._rest, CHUNK), *torch.split(flat[:whole], CHUNK)])
            self._rest = flat[whole:].clone()

    def end(self) -> None:
        """No more values of it."""
        self._hash(torch.split(self._rest, CHUNK))

    @torch.no_grad()
    def _hash(self, stretches: Iterable[Tensor]) -> None:
        some: Iterator[Tensor] = (each for each in stretches if len(each))
        first = list(islice(some, 2))
        if len(first) < 2:  # most tensors are one stretch: no threads are begun for it
            for values in first:
                self._state.update(self._digest_of(values))
            return
        some = chain(first, some)
        with ThreadPoolExecutor(min(THREADS, torch.get_num_threads())) as pool:
            while batch := list(islice(some, THREADS)):
                for part in pool.map(self._digest_of, batch):
                    self._state.update(part)

    def _digest_of(self, values: Tensor) -> bytes:
        return hashlib.sha256(_raw(self._form(values))).digest()

    def _form(self, values: Tensor) -> Tensor:
        return values if self._exact or not values.is_floating_point() else values.to(torch.bfloat16)

    def hexdigest(self) -> str:
        """Of all tensors so far."""
        return self._state.hexdigest()


def fingerprint(model: nn.Module) -> str:
    """sha256 over names, shapes and all values of parameters and saved buffers, rounded to bfloat16.

    Equal for all devices and for the float32 and bfloat16 forms of the same weights. What rounding hides, `weights_digest` shows.
    """
    return _digest(model, Digest(exact=False))


def weights_digest(model: nn.Module) -> str:
    """sha256 over names, dtypes, shapes and every bit of parameters and saved buffers."""
    return _digest(model, Digest(exact=True))


def saved_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of parameters, tied ones once, and of the buffers that a file keeps; sorted by name."""
    found = dict(model.named_parameters())
    for place, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                found[f"{place}.{name}" if place else name] = buffer
    yield from sorted(found.items())


def _digest(model: nn.Module, digest: Digest) -> str:
    for name, tensor in saved_tensors(model):
        digest.add(name, tensor)
    return digest.hexdigest()


def _raw(values: Tensor) -> Any:
    return values.cpu().contiguous().view(torch.uint8).numpy().data
