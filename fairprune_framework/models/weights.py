"""Which weights a model has: a fingerprint for every form of the same weights, and a digest of every bit. Both read all values."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

CHUNK = 1 << 22
"""Values hashed at once: threads share a large matrix, and no whole one is copied."""
THREADS = 8


def fingerprint(model: nn.Module) -> str:
    """sha256 over names, shapes and all values of parameters and saved buffers, rounded to bfloat16.

    Equal for all devices and for the float32 and bfloat16 forms of the same weights. What rounding hides, `weights_digest` shows.
    """
    return _digest(model, lambda tensor: "", lambda values: values.to(torch.bfloat16) if values.is_floating_point() else values)


def weights_digest(model: nn.Module) -> str:
    """sha256 over names, dtypes, shapes and every bit of parameters and saved buffers."""
    return _digest(model, lambda tensor: str(tensor.dtype), lambda values: values)


def saved_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of parameters, tied ones once, and of the buffers that a file keeps; sorted by name."""
    found = dict(model.named_parameters())
    for place, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                found[f"{place}.{name}" if place else name] = buffer
    yield from sorted(found.items())


@torch.no_grad()
def _digest(model: nn.Module, kind: Callable[[Tensor], str], form: Callable[[Tensor], Tensor]) -> str:
    state = hashlib.sha256()
    with ThreadPoolExecutor(min(THREADS, torch.get_num_threads())) as pool:
        for name, tensor in saved_tensors(model):
            state.update(f"{name} {kind(tensor)} {tuple(tensor.shape)}\n".encode())
            flat = tensor.detach().reshape(-1)
            chunks = (flat[start : start + CHUNK] for start in range(0, flat.numel(), CHUNK))
            while some := list(islice(chunks, THREADS)):
                for part in pool.map(lambda values: hashlib.sha256(_raw(form(values))).digest(), some):
                    state.update(part)
    return state.hexdigest()


def _raw(values: Tensor) -> Any:
    return values.cpu().contiguous().view(torch.uint8).numpy().data
