"""What a task gives: its items and their metrics, whoever runs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """One task on one model."""

    task: str
    version: str
    items: tuple[Mapping[str, Any], ...]
    """`id` (index in the whole set), `category`, `cluster`, and the value of each metric: a number, or the list that is aggregated."""
    metrics: Mapping[str, Mapping[str, Any]]
    """Metric -> `value` as lm-eval aggregates it, `aggregation` by name, `higher_is_better`; and of our own tasks `note`, for its rows, and
    `rests_on`, the accuracy that must beat `chance` for the metric to mean
    anything."""
    hash: str
    """Of the items' ids and documents."""

    def to_json(self) -> dict[str, Any]:
        """JSON values, as the cache keeps them."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TaskResult:
        """The result that `to_json` wrote."""
        return cls(**{**data, "items": tuple(data["items"])})
