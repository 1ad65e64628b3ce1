"""Two reductions over activations that a GPU does in one pass, where PyTorch's own kernels take ten.

They are written in Triton, which comes with PyTorch's builds for GPUs; elsewhere, and in dtypes wider than float32, callers compute the
same with PyTorch. `benchmarks/on_gpu.py` compares both on a card, and TRITON_INTERPRET=1 runs the kernels on a CPU.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

Power = Literal["signed", "absolute", "squared"]
BLOCK = 512
"""Columns of one program."""


def usable(values: Tensor) -> bool:
    """There is a kernel for this tensor: on a GPU, with Triton, in at most float32."""
    return values.is_cuda and values.dtype.itemsize <= 4 and _triton_found()


@cache
def _triton_found() -> bool:
    return find_spec("triton") is not None


def slot_variance(values_MK: Tensor, slots_CVS: Tensor, present_CV: Tensor) -> Tensor:
    """(C, S, K) float32: population variance over the present variants of the rows that a slot names.

    From the differences to the first variant, which every contrast has.

    Args:
        values_MK: activations, at most float32.
        slots_CVS: int64 rows; any row where a variant has no such slot.
        present_CV: bool.
    """
    count, variants, slots = slots_CVS.shape
    columns = values_MK.shape[1]
    found_CSK = torch.empty((count, slots, columns), dtype=torch.float32, device=values_MK.device)
    grid = (count * slots, -(-columns // BLOCK))
    _kernels()["slot_variance"][grid](
        values_MK.contiguous(),
        slots_CVS.contiguous(),
        present_CV.contiguous().view(torch.uint8),
        found_CSK,
        variants,
        slots,
        columns,
        BLOCK=BLOCK,
    )
    return found_CSK


def product_sums(acts_CVTK: Tensor, grads_CVTK: Tensor, mask_CVT: Tensor, of: Power = "signed") -> Tensor:
    """(C, K) float64: sum over variants and tokens of activation x gradient, of its absolute value, or of its square.

    Each product and the sum over a text's tokens in float32, texts added up in float64.

    Args:
        acts_CVTK: activations, at most float32; `grads_CVTK`: their gradients.
        mask_CVT: bool; what it leaves out counts 0, whatever stands there.
    """
    count, variants, tokens, columns = acts_CVTK.shape
    found_CK = torch.empty((count, columns), dtype=torch.float64, device=acts_CVTK.device)
    grid = (count, -(-columns // BLOCK))
    power = {"signed": 0, "absolute": 1, "squared": 2}[of]
    _kernels()["product_sums"][grid](
        acts_CVTK.contiguous(),
        grads_CVTK.contiguous(),
        mask_CVT.contiguous().view(torch.uint8),
        found_CK,
        variants,
        tokens,
        columns,
        POWER=power,
        BLOCK=BLOCK,
    )
    return found_CK


@cache
def _kernels() -> dict[str, Any]:
    from fairprune_framework.functional.triton_kernels import product_sums, slot_variance

    return {"slot_variance": slot_variance, "product_sums": product_sums}
