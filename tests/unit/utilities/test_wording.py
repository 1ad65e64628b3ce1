"""Numbers in sentences."""

from __future__ import annotations

import pytest

from fairprune_framework.utilities.wording import number_of


@pytest.mark.parametrize(("count", "text"), [(0, "0 neurons"), (1, "1 neuron"), (2, "2 neurons"), (12345, "12,345 neurons")])
def test_the_plural_is_for_all_but_one(count: int, text: str) -> None:
    assert number_of(count, "neuron") == text
