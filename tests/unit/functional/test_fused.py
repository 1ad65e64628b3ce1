"""What a GPU computes in one pass: the kernels, run by Triton's interpreter where Triton is installed, against plain PyTorch."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fairprune_framework.functional import fused
from fairprune_framework.functional.fused import product_sums, slot_variance, usable

KERNELS = Path(__file__).with_name("kernels_interpreted.py")


def test_a_cpu_and_wide_dtypes_use_pytorch() -> None:
    assert not usable(torch.zeros(2, 2))
    assert not usable(torch.zeros(2, 2, dtype=torch.float64))


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed: it comes with PyTorch's builds for GPUs")
def test_the_kernels_equal_plain_pytorch() -> None:
    """In a process of its own, since the interpreter is chosen when Triton is imported."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, KERNELS], env=environment, capture_output=True, text=True, timeout=300, check=False)
    if "InterpreterError" in done.stderr and "only 0-dimensional arrays can be converted" in done.stderr:
        pytest.skip("the interpreter of this Triton is older than NumPy 2.4")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["slot_variance", "product_sums"] * 2


@pytest.mark.parametrize(
    ("dtype", "on_gpu", "triton", "expected"),
    [
        (torch.float32, True, True, True),
        (torch.bfloat16, True, True, True),
        (torch.float64, True, True, False),
        (torch.float32, False, True, False),
        (torch.float32, True, False, False),
    ],
)
def test_where_there_is_a_kernel(
    dtype: torch.dtype, on_gpu: bool, triton: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "_triton_found", lambda: triton)
    assert usable(SimpleNamespace(is_cuda=on_gpu, dtype=dtype)) is expected  # type: ignore[arg-type]


class Launched:
    """In the place of a kernel: runs a function of two program numbers for each program of its grid."""

    def __init__(self, program: Callable[..., None]) -> None:
        self.program = program

    def __getitem__(self, grid: tuple[int, int]) -> Callable[..., None]:
        def launch(*given: Any, **constants: int) -> None:
            for first in range(grid[0]):
                for second in range(grid[1]):
                    self.program(first, second, *given, **constants)

        return launch


def variance_program(place: int, part: int, values: Any, rows: Any, present: Any, found: Any, *sizes: int, BLOCK: int) -> None:
    """What `triton_kernels.slot_variance` says of one program, in PyTorch; every place is written by one program alone."""
    variants, slots, columns = sizes
    inside = slice(part * BLOCK, min((part + 1) * BLOCK, columns))
    assert inside.start < columns
    contrast, slot = divmod(place, slots)
    seen = present.flatten()[contrast * variants : (contrast + 1) * variants].bool()
    mine = rows.flatten()[torch.arange(variants) * slots + contrast * variants * slots + slot][seen]
    assert bool(found.view(-1, columns)[place, inside].isnan().all())
    found.view(-1, columns)[place, inside] = values[mine, inside].float().var(0, correction=0)


def product_program(
    contrast: int, part: int, acts: Any, grads: Any, shown: Any, found: Any, *sizes: int, POWER: int, BLOCK: int
) -> None:
    """As `triton_kernels.product_sums`."""
    _, _, columns = sizes
    inside = slice(part * BLOCK, min((part + 1) * BLOCK, columns))
    assert inside.start < columns
    product = (acts[contrast] * grads[contrast]).masked_fill(shown[contrast].unsqueeze(-1) == 0, 0)[..., inside]
    assert bool(found[contrast, inside].isnan().all())
    found[contrast, inside] = (product, product.abs(), product.square())[POWER].sum((0, 1)).double()


@pytest.mark.parametrize("columns", [1, 512, 513, 1024])
def test_programs_cover_every_column_once(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = {"slot_variance": Launched(variance_program), "product_sums": Launched(product_program)}
    monkeypatch.setattr(fused, "_kernels", lambda: kernels)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **more: empty(*size, **more).fill_(torch.nan))
    generator = torch.Generator().manual_seed(0)
    values_MK = torch.randn(9, columns, generator=generator)
    slots_CVS = torch.randint(0, 9, (2, 3, 4), generator=generator)
    present_CV = torch.tensor([[True, True, True], [True, True, False]])
    found_CSK = slot_variance(values_MK, slots_CVS, present_CV)
    assert (found_CSK.shape, found_CSK.dtype) == ((2, 4, columns), torch.float32)
    for contrast, variants in enumerate((3, 2)):
        expected_SK = values_MK[slots_CVS[contrast, :variants]].var(0, correction=0)
        torch.testing.assert_close(found_CSK[contrast], expected_SK)
    acts_CVTK, grads_CVTK = torch.randn(2, 2, 3, 4, columns, generator=generator)
    mask_CVT = torch.rand(2, 3, 4, generator=generator) > 0.3
    product_CVTK = (acts_CVTK * grads_CVTK).masked_fill(~mask_CVT.unsqueeze(-1), 0)
    for of, change in (("signed", lambda x: x), ("absolute", torch.abs), ("squared", torch.square)):
        found_CK = product_sums(acts_CVTK, grads_CVTK, mask_CVT, of)  # type: ignore[arg-type]
        torch.testing.assert_close(found_CK, change(product_CVTK).sum((1, 2)).double(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(product_sums(acts_CVTK, grads_CVTK, mask_CVT), product_CVTK.sum((1, 2)).double())
