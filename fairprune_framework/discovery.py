"""Discovery of plugins and recipes through entry points, built-ins included; nothing is imported before its use.

A plugin is requested as `name`, or as `distribution:name` if two distributions offer the same name. A broken plugin never affects
another: it is listed as broken by `fairprune plugins list --load` and raises only when used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import traceback
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Literal

from fairprune_framework.errors import AmbiguousName, BrokenPlugin, UnknownName, UserError, did_you_mean, raised, text_of
from fairprune_framework.utilities.aside import plugin_call, prints_aside

if typing.TYPE_CHECKING:
    from fairprune_framework.api.interfaces import Plugin

Kind = Literal["bias", "importance", "policy", "architecture"]

GROUPS: Mapping[Kind, str] = {
    "bias": "fairprune.bias_scorers",
    "importance": "fairprune.importance_scorers",
    "policy": "fairprune.selection_policies",
    "architecture": "fairprune.architecture_adapters",
}
RECIPES = "fairprune.recipes"
OWN = "fairprune_framework"
"""The distribution that this package is of."""
UNKNOWN = "unknown"
"""Name of a distribution that does not say its own."""
INTERFACES: Mapping[Kind, str] = {
    "bias": "BiasScorer",
    "importance": "ImportanceScorer",
    "policy": "SelectionPolicy",
    "architecture": "ArchitectureAdapter",
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One declared entry point, not loaded."""

    kind: str
    name: str
    distribution: str
    version: str
    value: str
    """`module:attribute`, or for a recipe the package with `<name>.yaml`."""

    @property
    def label(self) -> str:
        """Its name in messages."""
        return f"{self.kind} {self.name!r} of {self.distribution} {self.version}"

    @property
    def top(self) -> str:
        """The top-level package or module that it is in."""
        return self.value.partition(":")[0].partition(".")[0].strip()


def entries(kind: str) -> list[Entry]:
    """All entry points of one kind (`bias`, `importance`, `policy`, `architecture`, `recipe`), sorted by name."""
    return every_entry()[kind]


def every_entry() -> dict[str, list[Entry]]:
    """Kind -> its entry points, sorted by name, from one reading of what is installed."""
    kinds = {RECIPES: "recipe", **{group: kind for kind, group in GROUPS.items()}}
    found: dict[str, dict[tuple[str, str], Entry]] = {kind: {} for kind in (*GROUPS, "recipe")}
    for point, distribution, version in offers():
        kind = kinds[point.group]
        entry = Entry(kind=kind, name=point.name, distribution=distribution, version=version, value=point.value)
        found[kind].setdefault((point.name, normalised(distribution)), entry)  # first on the path wins, as in imports
    return {kind: sorted(each.values(), key=lambda entry: (entry.name, entry.distribution)) for kind, each in found.items()}


def offers() -> Iterator[tuple[metadata.EntryPoint, str, str]]:
    """The entry points of plugins and recipes, each with name and version of its distribution; of several distributions of one name
    those of the first on the path.

    The entry points of each distribution are read once, and METADATA, which is parsed whole, of those alone that offer something
    here. A distribution whose entry points cannot be parsed is left out, and named on stderr: it hides no others, as it would from
    `importlib.metadata.entry_points`.
    """
    seen: set[str] = set()
    for distribution in metadata.distributions():
        own: list[metadata.EntryPoint] | None
        try:
            own = [point for point in distribution.entry_points if point.group in (RECIPES, *GROUPS.values())]
        except Exception:
            own = None
        if own == []:
            continue
        name, version = _name_and_version(distribution)
        if own is None:
            print(f"fairprune: the entry points of {name} cannot be read, and are left out", file=sys.stderr)
        elif name == UNKNOWN or normalised(name) not in seen:
            seen.add(normalised(name))
            yield from ((point, name, version) for point in own)


def _name_and_version(distribution: metadata.Distribution) -> tuple[str, str]:
    """Of a distribution, as it says; what it does not say is unknown, and 0."""
    try:
        said: Any = distribution.metadata
        return said.get("Name") or UNKNOWN, said.get("Version") or "0"
    except Exception:  # no METADATA, or none that can be read: its plugins are there all the same
        return UNKNOWN, "0"


def normalised(distribution: str) -> str:
    """The name of a distribution as it is compared."""
    return distribution.lower().replace("_", "-")


def find(kind: str, name: str) -> Entry:
    """Return the entry for `name` or `distribution:name`.

    Raises:
        UnknownName: no distribution offers it. AmbiguousName: two distributions do.
    """
    distribution, _, short = name.rpartition(":")
    known = entries(kind)
    wanted = normalised(distribution)
    matches = [e for e in known if e.name == short and (not wanted or normalised(e.distribution) == wanted)]
    if not matches:
        names = sorted({entry.name for entry in known})
        raise UnknownName(
            f"no {kind} named {name!r}.{did_you_mean(short, names)} Installed: {', '.join(names) or 'none'}. "
            "`fairprune plugins list` lists them."
        )
    if len(matches) > 1:
        offers = " and ".join(f"{entry.distribution}:{entry.name}" for entry in matches)
        raise AmbiguousName(f"{kind} {name!r} is offered by {len(matches)} distributions: {offers}. Use one of these names.")
    return matches[0]


def name_within(known: Iterable[Entry], name: str, distribution: str) -> str:
    """The name by which a distribution means a plugin of its own: as it is, or `distribution:name` where others offer that name too.

    Args:
        known: all entries of its kind.
    """
    offering = {normalised(entry.distribution) for entry in known if entry.name == name}
    return f"{distribution}:{name}" if normalised(distribution) in offering and len(offering) > 1 else name


def find_of_any_kind(name: str) -> Entry:
    """Return the entry of the one kind that offers `name` or `distribution:name`; recipes are not looked at.

    Raises:
        UnknownName: no kind offers it. AmbiguousName: several kinds do, or two distributions.
    """
    short = name.rpartition(":")[2]
    known = {kind: [entry.name for entry in found] for kind, found in every_entry().items() if kind in GROUPS}
    kinds = [kind for kind, names in known.items() if short in names]
    if not kinds:
        names = sorted({name for names in known.values() for name in names})
        close = " A name follows its kind." if name in GROUPS else did_you_mean(short, names)
        raise UnknownName(
            f"no plugin of any kind ({', '.join(GROUPS)}) is named {name!r}.{close} `fairprune plugins list` lists them."
        )
    found = []
    for kind in kinds:
        with contextlib.suppress(UnknownName):  # of a kind that another distribution than the named one offers
            found.append(find(kind, name))
    if not found:
        return find(kinds[0], name)
    if len(found) > 1:
        kinds = [entry.kind for entry in found]
        raise AmbiguousName(
            f"{name!r} is a plugin of {len(kinds)} kinds: {' and '.join(kinds)}. Say which, as `{kinds[0]} {name}`."
        )
    return found[0]


def load(entry: Entry) -> type[Plugin]:
    """Import the plugin class of an entry.

    Raises:
        BrokenPlugin: the import failed (cause chained), the object is not a subclass of the interface, or its `api_version` is
            another major version.
    """
    from fairprune_framework.api import interfaces
    from fairprune_framework.api.declared import check_class

    point = metadata.EntryPoint(name=entry.name, group=GROUPS[entry.kind], value=entry.value)  # type: ignore[index]
    try:
        with prints_aside():
            loaded = point.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise BrokenPlugin(f"{entry.label} cannot be loaded from {entry.value}: {raised(error)}") from error
    wanted = INTERFACES[entry.kind]  # type: ignore[index]
    if not (isinstance(loaded, type) and issubclass(loaded, getattr(interfaces, wanted))):
        raise BrokenPlugin(f"{entry.label}: {entry.value} is not a subclass of {wanted}")
    plugin: type[Plugin] = loaded
    if plugin.api_version != interfaces.API_VERSION:
        raise BrokenPlugin(
            f"{entry.label} is written for interface version {plugin.api_version}; this is version "
            f"{interfaces.API_VERSION}. Install a compatible release of {entry.distribution}, or an older fairprune_framework."
        )
    declared = getattr(plugin, "__dataclass_params__", None)
    if declared is None or not declared.frozen:
        raise BrokenPlugin(f"{entry.label}: {entry.value} must be a frozen, keyword-only dataclass")
    check_class(plugin, entry.label)
    return plugin


def build(kind: Kind, name: str, options: Mapping[str, Any] | None = None) -> Plugin:
    """Load a plugin and instantiate it with its options, each validated against the type of its field.

    Raises:
        UnknownName, AmbiguousName, BrokenPlugin: as `find` and `load`.
        UserError: an unknown option, or a value of the wrong type or out of the plugin's own bounds.
    """
    return build_of(find(kind, name), options)


def build_of(entry: Entry, options: Mapping[str, Any] | None = None) -> Plugin:
    """As `build`, of an entry that is known: what is installed is not read again."""
    return make(entry, load(entry), options or {})


def make(entry: Entry, plugin: type[Plugin], options: Mapping[str, Any]) -> Plugin:
    """Instantiate a loaded plugin class from the options of a recipe; raises as `build` does."""
    from fairprune_framework.api.declared import earlier, needs_of, passes_at

    fields = {field.name: field for field in dataclasses.fields(plugin) if field.init}  # type: ignore[arg-type]
    try:
        hints = typing.get_type_hints(plugin)
    except Exception as error:
        raise BrokenPlugin(f"{entry.label}: its annotations cannot be read: {type(error).__name__}: {error}") from error
    values = {}
    for option, value in options.items():
        option = option.replace("-", "_")
        if option not in fields:
            raise UnknownName(
                f"{entry.label} has no option {option!r}.{did_you_mean(option, fields)} "
                f"Its options: {', '.join(fields) or 'none'}."
            )
        values[option] = _checked(entry, option, hints[option], value)
    if missing := [name for name in required_options(plugin) if name not in values]:
        raise UserError(f"{entry.label} needs the option {missing[0]!r}.")
    try:
        with plugin_call(f"{entry.label}: making it", passing=(ValueError,)):
            made = plugin(**values)
    except ValueError as error:
        raise UserError(f"{entry.label}: {text_of(error)}") from error
    for statistic in needs_of(made, entry.label).statistics:
        passes_at(statistic, 1)
        earlier(statistic)
    return made


def required_options(plugin: type[Plugin]) -> list[str]:
    """The options of a plugin class that have no default."""
    return [
        field.name
        for field in dataclasses.fields(plugin)  # type: ignore[arg-type]
        if field.init and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]


def _checked(entry: Entry, option: str, hint: Any, value: Any) -> Any:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    try:
        return parser.parse_object({"value": value}).value
    except Exception as error:
        text = hint is str or (typing.get_origin(hint) in (typing.Union, types.UnionType) and str in typing.get_args(hint))
        quoted = " In two pairs of quotes it is text: '\"...\"'." if text and isinstance(value, (bool, int, float)) else ""
        raise UserError(
            f"The {option!r} option of {entry.label} must be {in_words(hint)}. Got {value!r} instead.{quoted}"
        ) from error


def in_words(hint: Any) -> str:
    """A type in the words of a message.

    >>> in_words(Literal["minmax", "rank"] | None)
    'one of minmax, rank'
    """
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    if typing.get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, kinds))}"
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(in_words(kind) for kind in kinds)
    if typing.get_origin(hint) in (tuple, list):
        return f"a list, each {in_words(kinds[0])}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}
    return words.get(hint) or ("a mapping" if typing.get_origin(hint) else str(getattr(hint, "__name__", hint)))


def at_fault(error: BaseException) -> str | None:
    """The label of the installed plugin through whose code an error came, the innermost; None: through that of none.

    Those of this distribution are no foreign code: their faults are this program's.
    """
    modules = [frame.f_globals.get("__name__") for frame, _ in traceback.walk_tb(error.__traceback__)]
    tops = [str(name).partition(".")[0] for name in modules]
    if not set(tops) - {"fairprune_framework", "jsonargparse", "argparse", "__main__"}:
        return None
    packages = {
        entry.top: entry.label
        for found in every_entry().values()
        for entry in found
        if entry.kind in GROUPS and normalised(entry.distribution) != normalised(OWN)
    }
    return next((packages[top] for top in reversed(tops) if top in packages), None)


def options_of(plugin: Plugin) -> dict[str, Any]:
    """All options of a plugin with their values, in the form of a recipe."""
    return {field.name: getattr(plugin, field.name) for field in dataclasses.fields(plugin) if field.init}  # type: ignore[arg-type]
