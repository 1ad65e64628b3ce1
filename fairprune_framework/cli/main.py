"""The command line: collects the commands, parses, calls one, and turns errors into one line and an exit code.

Exit codes: 0 done, 2 the user's input or a plugin is wrong, 1 anything else, 130 interrupted, 143 stopped by SIGTERM: the same
command goes on.
Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from fairprune_framework.auditing.distributed import liveness
from fairprune_framework.auditing.distributed.parallel import is_worker_rank, launched_ranks
from fairprune_framework.cli.command import Command
from fairprune_framework.cli.options import (
    explain_argument_error,
    join_negative_values,
    named_with_help,
    names_first,
    new_parser,
    one_line,
    option_strings,
    refuse_empty,
    split_plugin_options,
)
from fairprune_framework.errors import BrokenPlugin, FairpruneError, Interrupted, PluginError, UserError, raised, shortened
from fairprune_framework.utilities import lock, stopping
from fairprune_framework.utilities.aside import answer, answers_alone
from fairprune_framework.utilities.streams import ready
from fairprune_framework.utilities.versions import __version__

NO_NAME = {errno.ENAMETOOLONG: "a name that is too long for a file", errno.ELOOP: "a link that leads to itself"}
"""What is wrong with a path that no file can have; it was given, on the command line or in a file."""
MODULES = (
    "stages",
    "ablate",
    "inspect",
    "report",
    "restore",
    "export",
    "finetune",
    "push",
    "explore",
    "doctor",
    "completion",
    "prompts",
    "plugins",
    "ask",
)
"""Modules of this package that export `COMMANDS`, in the order of the help."""
DESCRIPTION = (
    "Find the MLP neurons of a language model that react to a demographic word, take them out, and measure whether it helped."
)
PATH = """the path, from nothing to something to look at:
  fairprune prompts check builtin:en --model smollm2-135m
      do the prompts line up under the model's tokenizer?
  fairprune run smollm2-135m --prompts builtin:en --output run
      everything, in some minutes; ends in a verdict; then open run/report.html
  fairprune run MODEL --prompts MINE.jsonl --output mine
      your model, your prompts
  fairprune report run mine --output both.html
      runs side by side

step by step, in one folder: audit, score, plan, prune, evaluate, report.
What is done is not repeated; --overwrite does it again. `fairprune COMMAND
--help` shows the options, `fairprune plugins list` the strategies."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code. Console script `fairprune`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    with ready():
        return _exit_code(words)


def _exit_code(words: list[str]) -> int:
    if not os.environ.get("FAIRPRUNE_DEBUG"):
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # what it says of lost connections is said in one line here
    if launched_ranks()[1] > 1:
        liveness.look_for_siblings()
    with stopping.noted_signals():
        code = _answered(words)
        lock.release_all()
        if (number := stopping.received()) is None or code == 143:
            return code
        if number == signal.SIGTERM:
            print("fairprune: stopped by SIGTERM; the same command goes on", file=sys.stderr)
            return 143
        print("fairprune: interrupted", file=sys.stderr)
        return 130


def _answered(words: list[str]) -> int:
    try:
        return _dispatch(words)
    except KeyboardInterrupt:
        if stopping.received() is None:
            print("fairprune: interrupted", file=sys.stderr)
        return 130
    except BaseException as raised_here:
        error = _blamed(raised_here)
        if isinstance(error, SystemExit):  # of `--help`, and of a rank that is done
            raise
        if stopping.received() is not None:  # whatever others made of the interrupt
            return 130
        return _explained(error)


def _blamed(error: BaseException) -> BaseException:
    """What came through the code of a plugin that is no part of this distribution is its fault, wherever it was called."""
    from fairprune_framework import discovery

    if isinstance(error, (FairpruneError, BrokenPipeError)) or (label := discovery.at_fault(error)) is None:
        return error
    blame = BrokenPlugin(f"{label} raised {raised(error)}")
    blame.__cause__ = error
    return blame


def _explained(error: BaseException) -> int:
    """The exit code for what a command raised, said in one line; a fault of this program is raised again."""
    debugging = bool(os.environ.get("FAIRPRUNE_DEBUG"))
    if isinstance(error, UserError):
        if not is_worker_rank():
            print(f"fairprune: error: {one_line(error)}", file=sys.stderr)
        return 2
    if isinstance(error, Interrupted):
        print(f"fairprune: {one_line(error)}", file=sys.stderr)
        return 143
    if isinstance(error, BrokenPipeError):
        return 1
    if isinstance(error, PermissionError) and error.filename is not None and not debugging:
        print(f"fairprune: error: no permission to read or write {shortened(str(error.filename), 300)}", file=sys.stderr)
        return 2
    if isinstance(error, OSError) and error.errno in NO_NAME and not debugging:
        print(f"fairprune: error: {NO_NAME[error.errno]}: {shortened(str(error.filename), 300)}", file=sys.stderr)
        return 2
    if debugging or not isinstance(error, (FairpruneError, OSError)):
        raise error
    cause = f"cause: {type(error.__cause__).__name__}; " if error.__cause__ else ""
    print(f"fairprune: error: {one_line(error)} ({cause}FAIRPRUNE_DEBUG=1 shows the traceback)", file=sys.stderr)
    return 2 if isinstance(error, PluginError) else 1


def collect() -> tuple[Command, ...]:
    """All commands, in the order of the help."""
    modules = (import_module(f"{__package__}.{name}") for name in MODULES)
    return tuple(command for module in modules for command in module.COMMANDS)


def build_parser(commands: Sequence[Command]) -> tuple[Any, dict[str, list[str]]]:
    """The parser of all commands; and the options of each first word, for messages."""
    parser = new_parser(DESCRIPTION, prog="fairprune", version=__version__, epilog=PATH)
    top = parser.add_subcommands(required=False, dest="command")
    inner: dict[str, Any] = {}
    known: dict[str, list[str]] = {}
    for command in commands:
        target = top
        if (group := command.group) is not None:
            if group.name not in inner:
                made = new_parser(group.help)
                top.add_subcommand(group.name, made, help=group.help)
                inner[group.name] = made.add_subcommands(required=False, dest="action")
            target = inner[group.name]
        made = new_parser(command.help)
        command.add_options(made)
        target.add_subcommand(command.name, made, help=command.help)
        known.setdefault(command.title.partition(" ")[0], []).extend(option_strings(made))
    return parser, known


def shown_plugins(asked: Sequence[tuple[str, str]], command: str) -> int:
    """`--bias NAME --help`: what the named plugins say of themselves and their options."""
    from fairprune_framework.cli.plugins import render

    for kind, name in asked:
        answer(render(kind, name), end="\n\n")
    answer(f"An option is given as --{asked[0][0]}.OPTION VALUE; `fairprune {command} --help` shows all others.")
    return 0


def _dispatch(words: list[str]) -> int:
    from jsonargparse import ArgumentError

    plugin_options, words = split_plugin_options(join_negative_values(words))
    commands = {command.title: command for command in collect()}
    if (asked := named_with_help(words)) and words[0] in commands and commands[words[0]].plugin_options:
        with answers_alone():
            return shown_plugins(asked, words[0])
    if (command := commands.get(" ".join(words[:2]))) is not None and command.optional_first:
        command.add_options(its_own := new_parser(command.help))
        words = [*words[:2], *names_first(words[2:], its_own)]
    parser, known = build_parser(tuple(commands.values()))
    try:
        parsed = parser.parse_args(words, defaults=False)
    except ArgumentError as error:
        raise UserError(explain_argument_error(str(error), words, known)) from error
    title = parsed.get("command")
    if title is None:
        parser.print_help()
        return 0
    values = parsed[title].as_dict() if parsed.get(title) is not None else {}
    if title not in commands:  # a group
        action = values.get("action")
        if action is None:
            parser.parse_args([title, "--help"])
        values, title = values.get(action) or {}, f"{title} {action}"
    refuse_empty(values)
    command = commands[title]
    if plugin_options and not command.plugin_options:
        raise UserError(f"`fairprune {title}` has no option --{next(iter(plugin_options))}")
    with answers_alone():
        return command.run({name.replace("-", "_"): value for name, value in values.items()} | plugin_options)
