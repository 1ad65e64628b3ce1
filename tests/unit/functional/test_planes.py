"""What is drawn of token representations against a singular value decomposition."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from fairprune_framework.functional.planes import PARTS, Planes, drawn_tokens, planes

RNG = np.random.default_rng(5)
VARIANTS = [{"tokens": ["The", "old", "man"], "start": 1}, {"tokens": ["The", "very", "young", "man"], "start": 1}]


def test_coordinates_keep_the_distances_that_a_plane_can_hold() -> None:
    """Rows of a plane, turned into many dimensions: what is drawn has all their distances, in every layer and after a change."""
    turned = np.linalg.qr(RNG.normal(size=(9, 2)))[0].T
    flat, moved = RNG.normal(size=(2, 3, 7, 2))
    found = planes(flat @ turned, moved @ turned, VARIANTS)
    kept = np.array([1, 2, 4, 5, 6])
    np.testing.assert_allclose(found.share.sum(1), 1)
    for layer in range(3):
        for drawn, rows in ((found.before[layer], flat[layer][kept]), (found.after[layer], moved[layer][kept])):  # type: ignore[index]
            np.testing.assert_allclose(
                np.linalg.norm(drawn[:, None] - drawn, axis=2), np.linalg.norm(rows[:, None] - rows, axis=2), atol=1e-9
            )
        assert found.distance_before[layer] == pytest.approx(np.linalg.norm(flat[layer][2] - flat[layer][6]))
        assert found.distance_after[layer] == pytest.approx(np.linalg.norm(moved[layer][2] - moved[layer][6]))  # type: ignore[index]


def test_one_model_alone_has_no_after() -> None:
    found = planes(RNG.normal(size=(2, 7, 5)), None, VARIANTS).parts
    assert found.keys() == {"before", "share", "distance_before"} < set(PARTS)


def test_the_same_layer_twice_is_drawn_the_same_way_round() -> None:
    layer = RNG.normal(size=(7, 5))
    found = planes(np.stack([layer, layer + 1e-9 * RNG.normal(size=layer.shape)]), None, VARIANTS)
    np.testing.assert_allclose(found.before[0], found.before[1], atol=1e-6)


@pytest.mark.parametrize(
    ("tokens", "start", "drawn"),
    [(["a", "b", "c"], 1, 2), (["a", "b", "c"], 0, 3), (["a", "b"], 1, 2)],
)
def test_a_shared_first_token_is_left_out_unless_it_is_the_attribute_or_one_of_two(
    tokens: list[str], start: int, drawn: int
) -> None:
    variants = [{"tokens": tokens, "start": start}] * 2
    assert [int(keep.sum()) for keep in drawn_tokens(variants)] == [drawn, drawn]


def test_three_variants_lie_apart_by_the_mean_of_their_three_distances() -> None:
    """At their last tokens: sides of 3, 4 and 5."""
    rows = np.zeros((1, 6, 4))
    rows[0, 1, 0], rows[0, 3, 1], rows[0, [0, 2, 4]] = 3.0, 4.0, RNG.normal(size=(3, 4))
    variants = [{"tokens": [word, "x"], "start": 0} for word in "abc"]
    found = planes(rows, 2 * rows, variants)
    assert found.distance_before.tolist() == [4.0]
    assert found.distance_after is not None
    assert found.distance_after.tolist() == [8.0]
    assert found.before.shape == (1, 6, 2)


def test_a_first_token_is_left_out_where_all_variants_can_do_without_it() -> None:
    usual = {"tokens": ["a", "b", "c"], "start": 1}
    for other in (
        {"tokens": ["a", "b", "c"], "start": 0},
        {"tokens": ["a", "b"], "start": 1},
        {"tokens": ["z", "b", "c"], "start": 1},
    ):
        assert all(keep.all() for keep in drawn_tokens([usual, other]))
        assert all(keep.all() for keep in drawn_tokens([other, usual]))
    assert [keep.tolist() for keep in drawn_tokens([usual, {**usual, "start": 2}])] == [[False, True, True]] * 2


def test_planes_are_made_by_name_and_do_not_change() -> None:
    found = planes(RNG.normal(size=(2, 7, 5)), None, VARIANTS)
    with pytest.raises(TypeError, match="positional"):
        Planes(*vars(found).values())
    with pytest.raises(FrozenInstanceError):
        found.before = found.share  # type: ignore[misc]
