"""Which statistic a sum comes from: its class, by module and name, and its fields. Two of one name never share sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from fairprune_framework.utilities.files import repr_digest

if TYPE_CHECKING:
    from fairprune_framework.api.interfaces import Statistic


def described(value: Any) -> str:
    """A statistic in words that are the same in every process: unlike `repr`, with its module, and sets are sorted.

    >>> described(frozenset({"up", "gate"}))
    "{'gate', 'up'}"
    """
    if is_dataclass(value) and not isinstance(value, type):
        inside = ", ".join(f"{item.name}={described(getattr(value, item.name))}" for item in fields(value))
        return f"{type(value).__module__}.{type(value).__qualname__}({inside})"
    if isinstance(value, (set, frozenset)):
        return f"{{{', '.join(sorted(map(described, value)))}}}"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(described, value))})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(sorted(f'{described(key)}: {described(item)}' for key, item in value.items()))}}}"
    return repr(value)


def stored_names(statistics: Sequence[Statistic]) -> dict[Statistic, str]:
    """The name under which each statistic of one audit is stored: its own, or with a hash where another one bears the same."""
    named: dict[str, set[Statistic]] = {}
    for statistic in statistics:
        named.setdefault(statistic.name, set()).add(statistic)
    return {each: each.name if len(named[each.name]) == 1 else told_apart(each) for each in statistics}


def told_apart(statistic: Statistic) -> str:
    """The name of a statistic with a hash of what it is."""
    return f"{statistic.name}~{repr_digest(described(statistic)).hex()[:12]}"


def own_sums(sums: Mapping[str, Any], statistics: Sequence[Statistic]) -> dict[str, Any]:
    """Of `<stored name>.<output>` -> sum, those of some statistics, as `<their own name>.<output>`."""
    found: dict[str, Any] = {}
    for statistic in statistics:
        prefix = f"{told_apart(statistic)}."
        if not any(key.startswith(prefix) for key in sums):
            prefix = f"{statistic.name}."
        found |= {f"{statistic.name}.{key[len(prefix) :]}": value for key, value in sums.items() if key.startswith(prefix)}
    return found
