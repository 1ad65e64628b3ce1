"""Which config field holds a width, and setting it where it lies."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fairprune_framework.api.widths import FIELDS, StoredWidth, read_field, stored_width, write_field


def config(**fields: Any) -> Any:
    return SimpleNamespace(**fields)


@pytest.mark.parametrize(
    ("fields", "columns", "expected"),
    [
        ({"intermediate_size": 48, "ffn_dim": 48}, 48, StoredWidth(units=48, field="intermediate_size")),
        ({"intermediate_size": 40, "ffn_dim": 48}, 48, StoredWidth(units=48, field="ffn_dim")),
        ({"intermediate_size": [40, 44, 48, 52]}, 48, StoredWidth(units=48, field="intermediate_size.2")),
        ({"intermediate_size": [40, 48, 44]}, 48, StoredWidth(units=48)),  # another layer's width is not this one's
        ({"n_inner": None}, 128, StoredWidth(units=128, field="n_inner")),
        ({"n_inner": None, "ffn_dim": 128}, 128, StoredWidth(units=128, field="ffn_dim")),
        ({"intermediate_size": 96}, 48, StoredWidth(units=48, field="intermediate_size", times=2)),
        ({"hidden_size": 32}, 128, StoredWidth(units=128)),
        ({"intermediate_size": True}, 1, StoredWidth(units=1)),
    ],
)
def test_the_field_of_a_width(fields: dict[str, Any], columns: int, expected: StoredWidth) -> None:
    assert stored_width(config(**fields), columns, 2, FIELDS) == expected


def test_shared_experts_in_one_mlp_have_units_of_several_neurons() -> None:
    found = stored_width(config(moe_intermediate_size=16), 48, 0, FIELDS, multiples=("moe_intermediate_size",))
    assert found == StoredWidth(units=16, unit_width=3, field="moe_intermediate_size")
    assert stored_width(config(moe_intermediate_size=20), 48, 0, FIELDS, multiples=("moe_intermediate_size",)).field is None


def test_fields_of_inner_configs_and_items_of_lists() -> None:
    shared = [48, 48, 48]
    inner = config(intermediate_size=shared, ffn_config=config(size=7), raw={"size": 9})
    assert [read_field(inner, name) for name in ("intermediate_size.1", "ffn_config.size", "raw.size")] == [48, 7, 9]
    assert [read_field(inner, name) for name in ("intermediate_size.3", "ffn_config.other", "none", "ffn_config.size.x")] == [
        None
    ] * 4
    for name, value in (("intermediate_size.1", 40), ("ffn_config.size", 6), ("raw.size", 8)):
        write_field(inner, name, value)
    assert (inner.intermediate_size, inner.ffn_config.size, inner.raw) == ([48, 40, 48], 6, {"size": 8})
    assert shared == [48, 48, 48]
