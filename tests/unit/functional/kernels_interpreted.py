"""Run by `test_fused.py`: the kernels against float64, with absent variants, masked NaN, and columns that fill no block."""

import torch

from fairprune_framework.functional.fused import product_sums, slot_variance

generator = torch.Generator().manual_seed(0)
C, V, S, K, M = 3, 4, 5, 700, 40
for dtype in (torch.float32, torch.bfloat16):
    values_MK = torch.randn(M, K, generator=generator).to(dtype)
    slots_CVS = torch.randint(0, M, (C, V, S), generator=generator)
    present_CV = torch.tensor([[True] * 4, [True, True, True, False], [True, True, False, False]])
    found_CSK = slot_variance(values_MK, slots_CVS, present_CV)
    for c in range(C):
        variants = int(present_CV[c].sum())
        expected_SK = values_MK[slots_CVS[c, :variants]].double().var(0, correction=0)
        torch.testing.assert_close(found_CSK[c].double(), expected_SK, rtol=1e-5, atol=1e-6)
    print("slot_variance")

    acts_CVTK, grads_CVTK = (torch.randn(C, V, S, K, generator=generator).to(dtype) for _ in range(2))
    mask_CVT = torch.rand(C, V, S, generator=generator) > 0.3
    acts_CVTK[~mask_CVT] = float("nan")
    product_CVTK = (acts_CVTK.double() * grads_CVTK.double()).masked_fill(~mask_CVT.unsqueeze(-1), 0)
    for of, change in (("signed", lambda x: x), ("absolute", torch.abs), ("squared", torch.square)):
        found_CK = product_sums(acts_CVTK, grads_CVTK, mask_CVT, of)
        torch.testing.assert_close(found_CK, change(product_CVTK).sum((1, 2)), rtol=1e-5, atol=1e-5)
    print("product_sums")
