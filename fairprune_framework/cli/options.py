"""Options: parsers, what the words of a command line mean, and the options of a recipe as fields say them."""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from fairprune_framework import discovery
from fairprune_framework.errors import UserError, did_you_mean, shortened, shown
from fairprune_framework.recipes.option import GROUPS, Option
from fairprune_framework.recipes.recipe import FIELDS, OPTIONS, PLUGIN_KINDS, UNSAFE, PluginSpec, Recipe, choices_of
from fairprune_framework.utilities.yaml_text import parse_yaml

JSON = "machine-readable"
"""Help of `--json` where it needs no more words."""


def new_parser(description: str, **settings: Any) -> Any:
    """A parser that raises instead of leaving the process, and takes no abbreviated options."""
    from jsonargparse import ArgumentParser

    return ArgumentParser(
        exit_on_error=False, allow_abbrev=False, description=description, formatter_class=_formatter(), **settings
    )


def add_json(parser: Any, help: str = JSON) -> None:
    """`--json`."""
    parser.add_argument("--json", action="store_true", help=help)


def add_quiet(parser: Any) -> None:
    """`--quiet`."""
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def add_unsafe(parser: Any) -> None:
    """The options that let code run which comes with a model: no file may give them, so that commands on a folder take them."""
    for name in UNSAFE:
        parser.add_argument(_flag(name), action="store_true", help=OPTIONS[name].help)


def unsafe_options(values: Mapping[str, Any]) -> dict[str, bool]:
    """Those of them that were given."""
    return {name: True for name in UNSAFE if values.get(name)}


def one_line(error: BaseException) -> str:
    """The message of an error, without breaks, of at most 500 characters."""
    return shortened(" ".join(str(error).split()), 497)


def pairs(given: Sequence[str], wanted: str) -> dict[str, str]:
    """`A=B` words as a mapping; `wanted` says what they must be."""
    parts = [pair.partition("=") for pair in given]
    if bad := next((pair for pair in parts if not (pair[0] and pair[2])), None):
        raise UserError(f"{wanted}. Got {''.join(bad)!r} instead.")
    return {field: column for field, _, column in parts}


def refuse_empty(values: Mapping[str, Any]) -> None:
    """Refuse a word that is given and empty, such as an unset variable of a shell; a recipe refuses its own.

    Raises:
        UserError: with the name of the option.
    """
    for name, value in values.items():
        if name not in FIELDS and (value == "" or (isinstance(value, list) and "" in value)):
            raise UserError(f"{name.replace('_', '-')!r} must not be empty. Got '' instead.")


def option_strings(parser: Any) -> list[str]:
    """The long options of a parser."""
    return [option for action in parser._actions for option in action.option_strings if option.startswith("--")]


@cache
def _formatter() -> type:
    from argparse import Action, RawDescriptionHelpFormatter

    from jsonargparse import DefaultHelpFormatter

    class Formatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
        """Leaves the lines of the epilog as they are, and adds no default: what is not given comes from a recipe or a run folder."""

        def _get_help_string(self, action: Action) -> str:
            return f"{action.help or ''}{' (required)' if action.required and action.option_strings else ''}"

    return Formatter


# -- the options of a recipe ---------------------------------------------------------------------------------------------


def add_recipe_options(parser: Any) -> None:
    """An option for each field of the recipe that has a group in the help."""
    for title in GROUPS:
        group = parser.add_argument_group(title)
        for name, option in OPTIONS.items():
            if option.group == title:
                _add_option(group, name, option)


def _add_option(group: Any, name: str, option: Option) -> None:
    flag, text, hint = _flag(name), option.help.replace("%", "%%"), _type_of(name)
    if hint is bool:
        group.add_argument(flag, action="store_true", help=text)
    elif _is_mapping(hint) or hint == tuple[str, ...]:
        group.add_argument(flag, action="append", metavar=option.metavar, help=f"{text} May be given again.")
    elif hint is PluginSpec:
        group.add_argument(flag, metavar=option.metavar, help=f"{text} Its options: {flag}.OPTION VALUE")
    elif hint == tuple[int, ...]:
        group.add_argument(flag, metavar=option.metavar, help=text)
    else:
        group.add_argument(flag, type=hint, help=text)


def recipe_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """What was given, as options of a recipe; other values are left as they are, and what was not given is left out.

    Raises:
        UserError: a list or a pair that is none.
    """
    options = {name: value for name, value in values.items() if value is not None and value is not False}
    for name in [name for name in options if name in OPTIONS]:
        hint = _type_of(name)
        if _is_mapping(hint):
            options[name] = pairs(options[name], f"{_flag(name)} must be {OPTIONS[name].metavar}")
        elif hint == tuple[int, ...]:
            try:
                options[name] = [int(word) for word in options[name].split(",")]
            except ValueError:
                raise UserError(f"{_flag(name)} must be numbers such as 0,1. Got {options[name]!r} instead.") from None
    return options


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


@cache
def _hints() -> dict[str, Any]:
    return typing.get_type_hints(Recipe)


def _type_of(name: str) -> Any:
    """The type of a field of the recipe, without None."""
    hint = _hints()[name]
    if type(None) in typing.get_args(hint):
        return next(kind for kind in typing.get_args(hint) if kind is not type(None))
    return hint


def _is_mapping(hint: Any) -> bool:
    return typing.get_origin(hint) is Mapping


# -- the words of a command line -----------------------------------------------------------------------------------------


def join_negative_values(words: Sequence[str]) -> list[str]:
    """Tie a value such as -5n to its option, so that it is not taken for an option itself."""
    tied: list[str] = []
    for word in words:
        if tied and re.match(r"-\.?\d", word) and re.fullmatch(r"--[a-z][^=]*", tied[-1]):
            tied[-1] += f"={word}"
        else:
            tied.append(word)
    return tied


def names_first(words: Sequence[str], parser: Any) -> list[str]:
    """The words of a command, those that belong to no option before all others.

    A parser takes a word at once, and cannot know what follows the options behind it: whether `bias --json variance` begins with a
    word that may be left out is seen when both stand together.
    """
    takes_value = {name for action in parser._actions if action.nargs != 0 for name in action.option_strings}
    names: list[str] = []
    rest: list[str] = []
    queue = iter(words)
    for word in queue:
        if not word.startswith("-"):
            names.append(word)
            continue
        rest.append(word)
        if word in takes_value and (value := next(queue, None)) is not None:
            rest.append(value)
    return [*names, *rest]


def split_plugin_options(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Take `--bias.relative true` (or `--bias.relative=true`) out of the words; values are read as YAML."""
    options: dict[str, Any] = {}
    rest: list[str] = []
    queue = iter(words)
    for word in queue:
        name, equals, value = word.partition("=")
        kind, dot, option = name.removeprefix("--").partition(".")
        if word.startswith("--") and dot and kind in PLUGIN_KINDS:
            if not equals:
                value = next(queue, "")
                if not value:
                    raise UserError(f"{name} needs a value")
            try:
                options[f"{kind}.{option}"] = parse_yaml(value)
            except ValueError as error:
                raise UserError(f"the value of {shortened(name)} is no YAML: {shown(value)} ({error})") from error
        else:
            rest.append(word)
    return options, rest


def named_with_help(words: Sequence[str]) -> list[tuple[str, str]]:
    """(kind, name) of the plugins that stand beside `--help`, as in `--bias variance --help`; none without it."""
    if not {"--help", "-h"} & set(words):
        return []
    found: list[tuple[str, str]] = []
    for number, word in enumerate(words):
        flag, equals, value = word.partition("=")
        kind = flag.removeprefix("--")
        if flag.startswith("--") and kind in PLUGIN_KINDS:
            name = value if equals else next(iter(words[number + 1 : number + 2]), "")
            if name and not name.startswith("-"):
                found.append((kind, name))
    return found


def explain_argument_error(text: str, words: Sequence[str], known: Mapping[str, Sequence[str]]) -> str:
    """What the parser says, in the terms of this command line.

    Args:
        text: the parser's message.
        words: the command line.
        known: first word of a command -> its options.
    """
    text = " ".join(text.split())
    first = next((word for word in words if not word.startswith("-")), "")
    if first and first not in known:
        return f"no command {first!r}.{did_you_mean(first, known)} `fairprune --help` lists them."
    options = known.get(first, ())
    if "nrecognized arguments" in text:
        given = [word.partition("=")[0] for word in words if word.startswith("-")]
        bad = next((name for name in given if name in text and name not in options), "")
        return f"{text}.{did_you_mean(bad, options)}"
    if (match := re.search(r'Parser key "([\w.]+)": .*Got value: (.*)', text)) is not None:
        name, value = match[1].rpartition(".")[2], match[2]
        more = did_you_mean(value, choices_of(name)) if name in FIELDS else ""
        expected = {"int": int, "float": float}.get(next(iter(re.findall(r"Expected a <class '(\w+)'>", text)), ""), str)
        return f"{_flag(name)} must be {discovery.in_words(_hints().get(name, expected))}. Got {value!r} instead.{more}"
    if (match := re.search(r"arguments are required: (.*)", text)) is not None:
        names = [name.rpartition(".")[2] for name in match[1].split(", ")]
        return f"missing: {', '.join(f'--{name}' if f'--{name}' in options else name.upper() for name in names)}"
    return text
