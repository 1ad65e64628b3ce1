"""Compensated sums against exact rational arithmetic."""

from __future__ import annotations

import random
from fractions import Fraction

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairprune_framework.functional.compensated import add_sums, add_value, rounded, two_sum

VALUES = st.floats(min_value=-1e150, max_value=1e150, allow_nan=False, allow_subnormal=False)
WIDE = st.lists(st.floats(min_value=1e-30, max_value=1e30), min_size=1, max_size=40)
TERMS = st.lists(st.floats(min_value=2.0**-20, max_value=2.0**20), min_size=1, max_size=40)
"""Within 2^40 of each other: all partial sums have at most 98 bits, and 106 are kept. (Wider apart, order may decide a tie.)"""


def pair(value: float = 0.0) -> torch.Tensor:
    return torch.tensor([value, 0.0], dtype=torch.float64)


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


@given(VALUES, VALUES)
def test_two_sum_is_exact(a: float, b: float) -> None:
    total, error = two_sum(number(a), number(b))
    assert Fraction(total.item()) + Fraction(error.item()) == Fraction(a) + Fraction(b)
    assert total.item() == a + b


@given(WIDE)
@settings(max_examples=100)
def test_sums_keep_a_hundred_bits(terms: list[float]) -> None:
    total = pair()
    for term in terms:
        total = add_value(total, number(term))
    exact = sum(map(Fraction, terms))
    assert abs(Fraction(total[0].item()) + Fraction(total[1].item()) - exact) <= exact * Fraction(2) ** -100


@given(TERMS)
@settings(max_examples=100)
def test_sums_are_the_nearest_float(terms: list[float]) -> None:
    total = pair()
    for term in terms:
        total = add_value(total, number(term))
    exact = sum(map(Fraction, terms))
    assert Fraction(total[0].item()) + Fraction(total[1].item()) == exact
    assert rounded(total).item() == float(exact)


@given(st.lists(VALUES, min_size=1, max_size=12), st.booleans())
@settings(max_examples=200)
def test_the_short_renormalisation_is_as_the_long_one(terms: list[float], cancels: bool) -> None:
    """With signs, and where all of it cancels: the words of a sum are those of two full `two_sum`."""
    short, long = pair(), pair()
    for term in [*terms, *(-term for term in reversed(terms) if cancels)]:
        high, error = two_sum(long[0], number(term))
        short, long = add_value(short, number(term)), torch.stack(two_sum(high, error + long[1]))
        assert short.equal(long)


@given(TERMS, st.randoms(use_true_random=False))
@settings(max_examples=100)
def test_order_and_grouping_change_no_bit(terms: list[float], chance: random.Random) -> None:
    def summed(values: list[float]) -> torch.Tensor:
        total = pair()
        for value in values:
            total = add_value(total, number(value))
        return total

    shuffled = chance.sample(terms, len(terms))
    cut = chance.randint(0, len(terms))
    merged = add_sums(torch.stack([summed(shuffled[:cut]), summed(shuffled[cut:])]))
    assert rounded(summed(terms)).item() == rounded(merged).item()


@given(st.lists(VALUES, min_size=1, max_size=20))
def test_cancelling_terms_keep_a_hundred_bits_of_the_largest(terms: list[float]) -> None:
    total = pair()
    for term in terms:
        total = add_value(total, number(term))
    exact, size = sum(map(Fraction, terms)), sum(abs(Fraction(term)) for term in terms)
    assert abs(Fraction(total[0].item()) + Fraction(total[1].item()) - exact) <= size * Fraction(2) ** -98


def test_plain_float64_would_not_do() -> None:
    terms = [1.0, 1e-16, 1e-16, 1e-16, 1e-16]
    total = pair()
    for term in terms:
        total = add_value(total, number(term))
    assert rounded(total).item() == float(sum(map(Fraction, terms))) != sum(terms)
