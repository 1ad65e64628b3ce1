"""Rotary encodings of which the factors depend on the longest text of a batch, so that a text's answer depends on its neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fairprune_framework.errors import UserError


def batch_limit(config: Any) -> tuple[str, int] | None:
    """The kind of encoding, and the most tokens of a text up to which all texts get the same factors; None: always the same.

    `longrope` takes other factors, and `dynamic` other frequencies, for a whole batch in which one text is longer. Source: the functions
    `longrope_frequency_update` and `dynamic_frequency_update` of transformers.

    Args:
        config: of the text model.
    """
    longest = getattr(config, "max_position_embeddings", None)
    limits: dict[str, Any] = {}
    for parameters in _rotary(getattr(config, "rope_parameters", None)):
        kind = parameters.get("rope_type")
        original = parameters.get("original_max_position_embeddings")
        if kind == "longrope":
            limits[kind] = original or getattr(config, "original_max_position_embeddings", None) or longest
        elif kind == "dynamic":
            limits[kind] = longest
    known = {kind: limit for kind, limit in limits.items() if isinstance(limit, int)}
    return min(known.items(), key=lambda one: one[1]) if known else None


def refuse_longer(config: Any, longest: int, what: str) -> None:
    """Raise `UserError` where a text is longer than `batch_limit`: what it and its neighbours are answered would depend on the batch."""
    found = batch_limit(config)
    if found is not None and longest > found[1]:
        kind, limit = found
        raise UserError(
            f"the positions of this model ({kind}) are encoded by the longest text of a batch where one has more than {limit} tokens, "
            f"and {what} has {longest}: every answer would depend on its neighbours. Leave longer texts out"
        )


def _rotary(parameters: Any) -> Iterator[Mapping[str, Any]]:
    """One mapping, or one of each type of layer."""
    if isinstance(parameters, Mapping):
        inner = [value for value in parameters.values() if isinstance(value, Mapping)]
        yield from inner or [parameters]
