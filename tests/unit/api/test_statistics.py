"""Statistics that plugins share, on observations in numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from fairprune_framework.api.interfaces import Observation, Pass
from fairprune_framework.api.statistics import SquareSum


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_squares_of_tokens_that_are_there(dtype: torch.dtype, observed: Callable[..., Observation]) -> None:
    acts = torch.randn(3, 1, 5, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    mask = torch.arange(5).expand(3, 1, 5) < torch.tensor([5, 2, 0])[:, None, None]
    found = SquareSum().summands(observed(acts, mask))["squares"]
    assert (found.dtype, found.shape) == (torch.float64, (3, 1, 7))
    values = acts.double().numpy()
    expected = np.stack([(values[c, 0, :length] ** 2).sum(0) for c, length in enumerate((5, 2, 0))])
    np.testing.assert_allclose(found.squeeze(1).numpy(), expected, rtol=1e-12)


def test_it_listens_to_calibration_text_and_is_equal_by_value() -> None:
    assert list(SquareSum().passes(3)) == [Pass(stream="calibration")]
    assert SquareSum() == SquareSum()
    assert len({SquareSum(), SquareSum()}) == 1
