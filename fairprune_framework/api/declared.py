"""What plugins and statistics say of themselves: asked here alone, and checked before anyone relies on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, get_args

from fairprune_framework.api.interfaces import Needs, Pass, Plugin, Reduction, Statistic
from fairprune_framework.api.types import Stream, Tap
from fairprune_framework.errors import ContractViolation, shown
from fairprune_framework.utilities.aside import plugin_call


def needs_of(plugin: Plugin, label: str | None = None) -> Needs:
    """What a plugin asks for.

    Args:
        label: of the plugin in messages; by default its class.

    Raises:
        BrokenPlugin: it does not say.
        ContractViolation: it asks for what there is not.
    """
    label = label or f"the plugin {type(plugin).__name__}"
    with plugin_call(f"{label}: needs()"):
        needs = plugin.needs()
    if not isinstance(needs, Needs):
        raise ContractViolation(f"{label} does not say what it needs: needs() must return Needs. Got {shown(needs)} instead.")
    for name in ("weights", "readout", "probe"):
        _expect(
            isinstance(getattr(needs, name), bool), f"{label}: the {name!r} of Needs", "true or false", getattr(needs, name)
        )
    count = needs.replicates
    whole = isinstance(count, int) and not isinstance(count, bool) and count >= 0
    _expect(whole, f"{label}: the 'replicates' of Needs", "a whole number of at least 0", count)
    _expect_names(needs.optional_streams, get_args(Stream), f"{label}: the 'optional_streams' of Needs")
    listed = isinstance(needs.statistics, tuple)
    _expect(listed, f"{label}: the 'statistics' of Needs", "a tuple of statistics", needs.statistics)
    for statistic in needs.statistics:
        _check_statistic(statistic, label)
    return needs


def passes_at(statistic: Statistic, layers: int) -> tuple[Pass, ...]:
    """The passes that a statistic listens to in a model of `layers` layers; raises as `needs_of`."""
    where = f"statistic {statistic.name!r}: passes()"
    passes = _listed(where, Pass, lambda: statistic.passes(layers))
    for pass_ in passes:
        _expect(pass_.stream in get_args(Stream), f"{where}: a stream", f"one of {', '.join(get_args(Stream))}", pass_.stream)
        _expect(pass_.logits in ("last", "all"), f"{where}: the 'logits' of a pass", "last or all", pass_.logits)
        number = isinstance(pass_.scale, (int, float)) and math.isfinite(pass_.scale)
        _expect(number, f"{where}: the 'scale' of a pass", "a finite number", pass_.scale)
        layer = pass_.layer is None or (isinstance(pass_.layer, int) and pass_.layer >= 0)
        _expect(layer, f"{where}: the 'layer' of a pass", "the number of a layer, or None", pass_.layer)
        able = pass_.objective is None or (callable(pass_.objective) and _hashable(pass_.objective))
        _expect(able, f"{where}: the 'objective' of a pass", "a frozen dataclass that can be called", pass_.objective)
    return passes


def earlier(statistic: Statistic) -> tuple[Statistic, ...]:
    """The statistics that one comes after; raises as `needs_of`."""
    where = f"statistic {statistic.name!r}: after()"
    found = _listed(where, Statistic, statistic.after)
    for each in found:
        _check_statistic(each, f"statistic {statistic.name!r}")
    return found


def check_class(plugin: type[Plugin], label: str) -> None:
    """Raise `ContractViolation` unless what a class declares is of its type."""
    exempt = plugin.exemptions
    words = isinstance(exempt, Mapping) and all(isinstance(word, str) for pair in exempt.items() for word in pair)
    _expect(words, f"{label}: `exemptions`", "a mapping from checks to reasons", exempt)
    for name in ("signed", "blind"):
        given = getattr(plugin, name, False)
        _expect(isinstance(given, bool), f"{label}: `{name}`", "true or false", given)
    _expect(isinstance(plugin.__doc__ or "", str), f"{label}: the docstring", "a text", plugin.__doc__)


def _check_statistic(statistic: Any, label: str) -> None:
    if not isinstance(statistic, Statistic):
        raise ContractViolation(f"{label} needs {shown(statistic)}, which is no statistic")
    where = f"{label}: the statistic {type(statistic).__name__}"
    parameters = getattr(type(statistic), "__dataclass_params__", None)
    if parameters is None or not parameters.frozen or not _hashable(statistic):
        raise ContractViolation(f"{where} must be a frozen dataclass whose fields can be hashed, so that equal ones run once")
    name = statistic.name
    _expect(
        isinstance(name, str) and bool(name) and not set("/:") & set(name), f"{where}: its name", "a text without / and :", name
    )
    _expect_names(statistic.taps, get_args(Tap), f"{where}: its `taps`")
    _expect_names(statistic.optional_taps, get_args(Tap), f"{where}: its `optional_taps`")
    _expect(statistic.reduce in get_args(Reduction), f"{where}: its `reduce`", "sum, max or min", statistic.reduce)


def _listed(where: str, kind: type, call: Callable[[], Any]) -> tuple[Any, ...]:
    with plugin_call(where):
        found = call()
    fits = isinstance(found, Sequence) and all(isinstance(each, kind) for each in found)
    _expect(fits, where, f"a sequence, each a {kind.__name__}", found, must="must return")
    return tuple(found)


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except Exception:
        return False
    return True


def _expect_names(given: Any, known: Iterable[str], what: str) -> None:
    known = tuple(known)
    _expect(isinstance(given, frozenset) and given <= set(known), what, f"a frozenset of {', '.join(known)}", given)


def _expect(fits: bool, what: str, wanted: str, given: Any, must: str = "must be") -> None:
    if not fits:
        raise ContractViolation(f"{what} {must} {wanted}. Got {shown(given)} instead.")
