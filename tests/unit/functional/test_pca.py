"""Principal components against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA

from fairprune_framework.functional.pca import principal, steadied


@pytest.mark.parametrize("shape", [(12, 300), (40, 8)])
def test_against_scikit_learn(shape: tuple[int, int]) -> None:
    draw = np.random.default_rng(0)
    before, after = draw.normal(size=shape) * np.linspace(3, 1, shape[1]), draw.normal(size=shape)
    wanted = PCA(2).fit(before)
    found, then, share = principal(before, after)
    signs = np.sign((found * wanted.transform(before)).sum(0))
    np.testing.assert_allclose(found * signs, wanted.transform(before), atol=1e-9)
    assert then is not None
    np.testing.assert_allclose(then * signs, wanted.transform(after), atol=1e-9)
    np.testing.assert_allclose(share, wanted.explained_variance_ratio_, atol=1e-12)


def test_points_that_do_not_differ_stay_at_the_origin() -> None:
    found, then, share = principal(np.ones((4, 6)), np.ones((4, 6)))
    assert then is not None
    assert not found.any()
    assert not then.any()
    assert np.isfinite(share).all()


def test_points_on_a_line_have_no_second_direction() -> None:
    """Not one of rounding errors, along which other points would lie anywhere."""
    draw = np.random.default_rng(3)
    before = np.outer(np.arange(5.0), draw.normal(size=40)) + draw.normal(size=40)
    found, then, share = principal(before, draw.normal(size=(5, 40)))
    assert then is not None
    assert found[:, 0].all()
    assert not found[:, 1].any()
    assert not then[:, 1].any()
    np.testing.assert_allclose(share, [1, 0], atol=1e-12)


def test_a_single_point_has_no_direction() -> None:
    found, then, share = principal(np.ones((1, 6)), np.full((1, 6), 3.0))
    assert then is not None
    assert found.tolist() == then.tolist() == [[0.0, 0.0]]
    assert share.tolist() == [0.0, 0.0]
    assert principal(np.ones((1, 6)), None)[1] is None


def test_signs_follow_the_layer_before() -> None:
    first = np.array([[1.0, -2.0], [-0.5, 1.0]])
    np.testing.assert_array_equal(steadied(first, None), [1, -1])
    np.testing.assert_array_equal(steadied(first * [-1, 1], first), [-1, 1])


def test_what_lies_at_the_origin_is_not_turned() -> None:
    first = np.array([[0.0, -2.0], [0.0, 1.0]])
    np.testing.assert_array_equal(steadied(first, None), [1, -1])
    np.testing.assert_array_equal(steadied(first, np.ones((2, 2))), [1, -1])
    np.testing.assert_array_equal(steadied(np.zeros((2, 2)), np.zeros((2, 2))), [1, 1])


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_two_points_have_one_direction_whatever_the_unit(scale: float) -> None:
    before = scale * np.array([[1.0, 2.0, 2.0], [-1.0, -2.0, -2.0]])
    found, then, share = principal(before, before + scale * np.array([1.0, 2.0, 2.0]))
    sign = np.sign(found[0, 0])
    np.testing.assert_allclose(sign * found / scale, [[3, 0], [-3, 0]], atol=1e-9)
    assert then is not None
    np.testing.assert_allclose(sign * then / scale, [[6, 0], [0, 0]], atol=1e-9)
    np.testing.assert_allclose(share, [1, 0], atol=1e-12)
