"""Which field of a config holds the width of a site, so that a pruned model can be stored and loaded again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

FIELDS = (
    "intermediate_size",
    "ffn_hidden_size",
    "ffn_dim",
    "decoder_ffn_dim",
    "n_inner",
    "dense_intermediate_size",
    "intermediate_size_mlp",
    "feed_forward_size",
    "d_inner",
    "dff",
    "dim_ff",
    "d_ff",
)
"""Config fields that hold the width of an MLP, by the names of the families of transformers."""
SHARED_FIELDS = (
    "shared_expert_intermediate_size",
    "moe_shared_expert_intermediate_size",
    "shared_experts_intermediate_size",
    "shared_intermediate_size",
)
"""The same for an expert that every token goes through, beside routed ones."""
EXPERT_FIELDS = (
    "moe_intermediate_size",
    "expert_ffn_hidden_size",
    "intermediate_size",
    "ffn_config.ffn_hidden_size",
    "ffn_hidden_size",
)
"""The same for a routed expert."""


@dataclass(frozen=True, kw_only=True)
class StoredWidth:
    """How a config says the width of a site: `Site.units`, `unit_width`, `config_fields`, `width_group` and `surgery` follow."""

    units: int
    unit_width: int = 1
    field: str | None = None
    """The field; None: no one holds the width, and nothing can be cut."""
    times: int = 1
    """The field's value divided by the units."""


def read_field(config: Any, field: str) -> Any:
    """The value of a config field; `ffn_config.size` is a field of an inner config, `intermediate_size.3` an item of a list.

    Returns: None where there is no such field.
    """
    for part in field.split("."):
        if isinstance(config, (list, tuple)):
            config = config[int(part)] if part.isdigit() and int(part) < len(config) else None
        else:
            config = config.get(part) if isinstance(config, dict) else getattr(config, part, None)
    return config


def write_field(config: Any, field: str, value: Any) -> None:
    """Set a config field, as `read_field` names it. A list is replaced by a changed copy: configs may share it."""
    path, _, last = field.rpartition(".")
    owner = read_field(config, path) if path else config
    if isinstance(owner, (list, tuple)):
        write_field(config, path, type(owner)([*owner[: int(last)], value, *owner[int(last) + 1 :]]))
    elif isinstance(owner, dict):
        owner[last] = value
    else:
        setattr(owner, last, value)


def stored_width(config: Any, columns: int, layer: int, fields: Sequence[str], multiples: Sequence[str] = ()) -> StoredWidth:
    """The first field that holds the width of a site.

    In turn: one of `fields` that equals the width, or whose item for the layer does; one of `multiples` that the width is a multiple of;
    one of `fields` that is None, so that the family computes the width from others; one that is twice the width.

    Args:
        columns: neurons of the site.
        multiples: fields with the width of one of `n` shared experts that are held as one MLP: a unit is then `n` adjacent neurons.
    """
    for field in fields:
        value = read_field(config, field)
        if isinstance(value, (list, tuple)) and layer < len(value) and value[layer] == columns:
            return StoredWidth(units=columns, field=f"{field}.{layer}")
        if value == columns and not isinstance(value, bool):
            return StoredWidth(units=columns, field=field)
    for field in multiples:
        value = read_field(config, field)
        if isinstance(value, int) and value and columns % value == 0:
            return StoredWidth(units=value, unit_width=columns // value, field=field)
    for field in fields:
        if "." not in field and hasattr(config, field) and getattr(config, field) is None:
            return StoredWidth(units=columns, field=field)
    for field in fields:
        if read_field(config, field) == 2 * columns:
            return StoredWidth(units=columns, field=field, times=2)
    return StoredWidth(units=columns)
