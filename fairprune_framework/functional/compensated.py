"""Sums that do not depend on the order of their terms: double-double arithmetic on float64 tensors.

A sum is a pair (hi, lo) stacked on the first axis, with hi + lo exact to about 106 bits. Pure functions; no state.
Source: Knuth's TwoSum; Dekker 1971; Hida, Li and Bailey 2001 ("sloppy" addition is not used).
"""

from __future__ import annotations

import torch
from torch import Tensor


def two_sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return s = fl(a + b) and its exact error, s + error == a + b. Any order of magnitudes.

    >>> two_sum(torch.tensor(1.0).double(), torch.tensor(1e-20, dtype=torch.float64))[1].item()
    1e-20
    """
    total = a + b
    b_part = total - a
    a_error = (total - b_part).neg_().add_(a)  # a - (total - b_part), and so below: in place, for memory costs more than sums
    return total, a_error.add_(b_part.neg_().add_(b))


def _quick_two_sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """As `two_sum` where |a| >= |b| or a is 0 (Dekker 1971): half of the operations."""
    total = a + b
    return total, (total - a).neg_().add_(b)


def add_value(sum_2: Tensor, value: Tensor) -> Tensor:
    """Add float64 values (...) to double-double sums (2, ...)."""
    high, error = two_sum(sum_2[0], value)  # a multiple of the last place of the sum, or 0: the low word is no larger
    return torch.stack(_quick_two_sum(high, error.add_(sum_2[1])))


def add_in_place(high: Tensor, low: Tensor, value: Tensor, room: Tensor, further: Tensor) -> tuple[Tensor, Tensor]:
    """`add_value` of sums whose words are given apart, bit for bit: the new words, in the memory of `low` and of `high`.

    Args:
        high, low, value: are written over.
        room, further: as large each, to compute in.
    """
    total = torch.add(high, value, out=room)
    b_part = torch.sub(total, high, out=further)
    value.sub_(b_part)
    high.sub_(torch.sub(total, b_part, out=further)).add_(value).add_(low)  # the error of the total, and the low word
    new = torch.add(total, high, out=low)
    return new, high.sub_(total.sub_(new).neg_())


def add_sums(stacked_n2: Tensor) -> Tensor:
    """Add n double-double sums, (n, 2, ...) -> (2, ...); the form that torchmetrics asks of a reduction."""
    total_2 = stacked_n2[0]
    for other_2 in stacked_n2[1:]:
        high, high_error = two_sum(total_2[0], other_2[0])
        low, low_error = two_sum(total_2[1], other_2[1])
        high, carried = two_sum(high, high_error + low)
        total_2 = torch.stack(two_sum(high, carried + low_error))
    return total_2


def rounded(sum_2: Tensor) -> Tensor:
    """The float64 nearest to a double-double sum: (2, ...) -> (...)."""
    return sum_2[0] + sum_2[1]
