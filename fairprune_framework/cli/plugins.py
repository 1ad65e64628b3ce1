"""`fairprune plugins list | new | show | check`."""

from __future__ import annotations

import dataclasses
import inspect
import json
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fairprune_framework import discovery
from fairprune_framework.api.declared import needs_of
from fairprune_framework.cli.command import Command, Group
from fairprune_framework.cli.options import add_json, one_line
from fairprune_framework.errors import FairpruneError, UserError
from fairprune_framework.utilities.aside import answer
from fairprune_framework.utilities.files import refuse_part_of_run

GROUP = Group(name="plugins", help="list what is installed")


def _add_list_options(parser: Any) -> None:
    parser.add_argument("--load", action="store_true", help="import each one: ok, or broken and why")
    add_json(parser)


def _list(values: dict[str, Any]) -> int:
    rows = []
    for kind, found in discovery.every_entry().items():
        for entry in found:
            row = {**dataclasses.asdict(entry), "state": "not loaded", "error": None}
            if values.get("load") and kind != "recipe":
                row |= _state(entry)
            rows.append(row)
    if values.get("json"):
        answer(json.dumps(rows, indent=1))
        return 0
    names = ("kind", "name", "distribution", "version", "state")
    widths = [max([len(name), *(len(str(row[name])) for row in rows)]) for name in names]
    for line in [dict(zip(names, names, strict=True)), *rows]:
        answer("  ".join(str(line[name]).ljust(width) for name, width in zip(names, widths, strict=True)).rstrip())
    for row in rows:
        if row["error"]:
            answer(f"\n{row['error']}")
    return 0


def _state(entry: discovery.Entry) -> dict[str, Any]:
    """Whether a plugin can be loaded and made with its defaults, and says what it needs."""
    try:
        plugin = discovery.load(entry)
        if required := discovery.required_options(plugin):
            return {"state": f"needs {', '.join(required)}"}
        discovery.make(entry, plugin, {})
    except FairpruneError as error:
        return {"state": "broken", "error": one_line(error)}
    return {"state": "ok"}


def _add_named(parser: Any) -> None:
    parser.add_argument(
        "kind", nargs="?", choices=list(discovery.GROUPS), help="which interface; needed where several have NAME"
    )
    parser.add_argument("name", help="as in `fairprune plugins list`")


def _kind_and_name(values: dict[str, Any]) -> tuple[Any, str]:
    """Of the plugin that is meant; a name that one kind alone has needs no kind."""
    kind, name = values.get("kind"), values["name"]
    return kind or discovery.find_of_any_kind(name).kind, name


def _add_check_options(parser: Any) -> None:
    _add_named(parser)
    parser.add_argument("--option", action="append", metavar="K=V", help="an option of the plugin; may be given again")
    parser.add_argument("--skip", action="append", metavar="CHECK", help="leave this check out; may be given again")
    add_json(parser)


def _check(values: dict[str, Any]) -> int:
    from fairprune_framework.testing.contracts import check_plugin

    kind, name = _kind_and_name(values)
    plugin = discovery.build(kind, name, _options(values.get("option") or ()))
    try:
        report = check_plugin(kind, plugin, skip=dict.fromkeys(values.get("skip") or (), "left out by --skip"))
    except ValueError as error:
        raise UserError(str(error)) from error
    answer(json.dumps(dataclasses.asdict(report), indent=1) if values.get("json") else str(report))
    return 1 if report.failures else 0


def _options(given: Iterable[str]) -> dict[str, Any]:
    import yaml

    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UserError(f"--option must be NAME=VALUE. Got {text!r} instead.")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            found[name] = value
    return found


def _add_show_options(parser: Any) -> None:
    _add_named(parser)
    add_json(parser)


def _show(values: dict[str, Any]) -> int:
    kind, name = _kind_and_name(values)
    answer(json.dumps(_told(kind, name), indent=1, default=str) if values.get("json") else render(kind, name))
    return 0


def _told(kind: str, name: str) -> dict[str, Any]:
    """All that is known of a plugin."""
    entry = discovery.find(kind, name)
    plugin = discovery.load(entry)
    fields = [field for field in dataclasses.fields(plugin) if field.init]  # type: ignore[arg-type]
    options = {field.name: _default(field) for field in fields}
    made = None if discovery.required_options(plugin) else discovery.make(entry, plugin, {})
    needs = None if made is None else needs_of(made, entry.label)
    return {
        **dataclasses.asdict(entry),
        "doc": inspect.cleandoc(plugin.__doc__ or ""),
        "source": _source(plugin),
        "options": {name: _described(plugin, name, value) for name, value in options.items()},
        "statistics": [] if needs is None else [statistic.name for statistic in needs.statistics],
        "needs": []
        if needs is None
        else [name for name in ("weights", "readout", "probe", "replicates") if getattr(needs, name)],
        "exemptions": dict(plugin.exemptions),
    }


def render(kind: str, name: str) -> str:
    """What `fairprune plugins show` says of a plugin.

    Raises:
        UnknownName, AmbiguousName, BrokenPlugin: as `discovery.find` and `discovery.load`.
    """
    found = _told(kind, name)
    lines = [discovery.find(kind, name).label, "", found["doc"], ""]
    for option, told in found["options"].items():
        default = f"default {told['default']!r}" if "default" in told else "must be given"
        lines.append(f"option      {option}: {told['type']}, {default}")
    lines.append(f"statistics  {', '.join(found['statistics']) or 'none'}")
    lines.append(f"needs       {', '.join(found['needs']) or 'nothing more'}")
    lines += [f"exempt      {check}: {reason}" for check, reason in found["exemptions"].items()]
    return "\n".join([*lines, f"source      {found['source']}"])


def _add_new_options(parser: Any) -> None:
    parser.add_argument("name", help="of the plugin and its distribution: lower-case words with hyphens")
    parser.add_argument("--kind", choices=list(discovery.GROUPS), required=True, help="which interface")
    parser.add_argument("--output", metavar="DIR", help="folder in which the new one is made; by default this one")


def _new(values: dict[str, Any]) -> int:
    from fairprune_framework.testing.scaffold import write_distribution

    place = Path(values.get("output") or ".")
    refuse_part_of_run(place)
    folder = write_distribution(values["kind"], values["name"], place)
    answer(f"wrote {folder}: `pip install -e '{folder}[test]'`, then `pytest {folder}`")
    return 0


def _source(plugin: type) -> str:
    try:
        return f"{inspect.getsourcefile(plugin)}:{inspect.getsourcelines(plugin)[1]}"
    except (OSError, TypeError):
        return "not available"


def _default(field: dataclasses.Field[Any]) -> Any:
    """The default of an option; MISSING where it must be given."""
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def _described(plugin: type, name: str, default: Any) -> dict[str, Any]:
    found = {"type": discovery.in_words(typing.get_type_hints(plugin)[name])}
    return found if default is dataclasses.MISSING else found | {"default": default}


COMMANDS = (
    Command(
        name="list",
        help="show kind, name, distribution, version and state",
        add_options=_add_list_options,
        run=_list,
        group=GROUP,
    ),
    Command(
        name="new",
        help="write a distribution with one plugin, which passes its own tests",
        add_options=_add_new_options,
        run=_new,
        group=GROUP,
    ),
    Command(
        name="show",
        help="show a plugin's docstring, options, statistics and source",
        add_options=_add_show_options,
        run=_show,
        group=GROUP,
        optional_first=True,
    ),
    Command(
        name="check",
        help="run the contract suite on an installed plugin",
        add_options=_add_check_options,
        run=_check,
        group=GROUP,
        optional_first=True,
    ),
)
