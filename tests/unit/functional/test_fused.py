"""What a GPU computes in one pass: the kernels, run by Triton's interpreter where Triton is installed, against plain PyTorch."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from fairprune_framework.functional.fused import usable

KERNELS = Path(__file__).with_name("kernels_interpreted.py")


def test_a_cpu_and_wide_dtypes_use_pytorch() -> None:
    assert not usable(torch.zeros(2, 2))
    assert not usable(torch.zeros(2, 2, dtype=torch.float64))


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed: it comes with PyTorch's builds for GPUs")
def test_the_kernels_equal_plain_pytorch() -> None:
    """In a process of its own, since the interpreter is chosen when Triton is imported."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, KERNELS], env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["slot_variance", "product_sums"] * 2
