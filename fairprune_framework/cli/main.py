"""The command line: words into a recipe, stages called, errors turned into one line and an exit code.

Exit codes: 0 done, 2 the user's input is wrong, 1 anything else, 130 interrupted, 143 stopped by SIGTERM: an
audit goes on later. Nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import json
import os
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fairprune_framework import discovery
from fairprune_framework.auditing.distributed.parallel import is_worker_rank
from fairprune_framework.cli import ask as cli_questions
from fairprune_framework.cli import prompts as cli_inputs
from fairprune_framework.cli.command import COMMANDS
from fairprune_framework.errors import FairpruneError, Interrupted, UserError, did_you_mean
from fairprune_framework.recipes import recipe
from fairprune_framework.recipes.option import GROUPS, Option
from fairprune_framework.utilities.versions import __version__

STAGE_HELP = {
    "run": "do everything: read, audit, score, plan, prune, evaluate, report",
    "audit": "stream the contrasts through the model into statistics",
    "score": "turn the statistics of a run into bias and importance per neuron",
    "plan": "choose neurons by the scores of a run",
    "prune": "carry out the plan of a run, if the guard holds",
    "evaluate": "judge a run before and after, or one model alone",
}
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
    try:
        return _dispatch(words)
    except UserError as error:
        if not is_worker_rank():
            print(f"fairprune: error: {cli_inputs.one_line(error)}", file=sys.stderr)
        return 2
    except Interrupted as error:
        print(f"fairprune: {cli_inputs.one_line(error)}", file=sys.stderr)
        return 143
    except KeyboardInterrupt:
        print("fairprune: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1
    except (FairpruneError, OSError) as error:
        if os.environ.get("FAIRPRUNE_DEBUG"):
            raise
        cause = f"cause: {type(error.__cause__).__name__}; " if error.__cause__ else ""
        print(f"fairprune: error: {cli_inputs.one_line(error)} ({cause}FAIRPRUNE_DEBUG=1 shows the traceback)", file=sys.stderr)
        return 1


def _dispatch(words: list[str]) -> int:
    from jsonargparse import ArgumentError

    options, words = _plugin_options(_with_negative_values(words))
    parser, known = _parser()
    try:
        parsed = parser.parse_args(words, defaults=False)
    except ArgumentError as error:
        raise UserError(_argument_error(str(error), words, known)) from error
    command = parsed.get("command")
    if command is None:
        parser.print_help()
        return 0
    values: dict[str, Any] = parsed[command].as_dict() if parsed.get(command) is not None else {}
    if options and command not in STAGE_HELP:
        raise UserError(f"`fairprune {command}` has no option --{next(iter(options))}")
    if command in STAGE_HELP:
        return _stage(command, values, options)
    if command in _PLAIN:
        return _PLAIN[command](values)
    if command in COMMANDS:
        return COMMANDS[command].work({name.replace("-", "_"): value for name, value in values.items()} | {"parser": parser})
    action = values.get("action")
    if action is None:
        parser.parse_args([command, "--help"])
    chosen: Callable[[dict[str, Any]], int] = _ACTIONS[command, typing.cast(str, action)]
    return chosen(values.get(typing.cast(str, action)) or {})


def _with_negative_values(words: Sequence[str]) -> list[str]:
    """Tie a value such as -5n to its option, so that it is not taken for an option itself."""
    tied: list[str] = []
    for word in words:
        if tied and re.match(r"-\.?\d", word) and re.fullmatch(r"--[a-z][^=]*", tied[-1]):
            tied[-1] += f"={word}"
        else:
            tied.append(word)
    return tied


def _argument_error(text: str, words: Sequence[str], known: Mapping[str, Sequence[str]]) -> str:
    """What the parser says, in the words of this command line."""
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
        hint = typing.get_type_hints(recipe.Recipe).get(name, str)
        more = did_you_mean(value, recipe.choices_of(name)) if name in recipe.FIELDS else ""
        return f"--{name.replace('_', '-')} must be {discovery.in_words(hint)}. Got {value!r} instead.{more}"
    if (match := re.search(r"arguments are required: (.*)", text)) is not None:
        names = [name.rpartition(".")[2] for name in match[1].split(", ")]
        return f"missing: {', '.join(f'--{name}' if f'--{name}' in options else name.upper() for name in names)}"
    return text


def _plugin_options(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Take `--bias.relative true` (or `--bias.relative=true`) out of the words; values are read as YAML."""
    import yaml

    options: dict[str, Any] = {}
    rest: list[str] = []
    queue = iter(words)
    for word in queue:
        name, equals, value = word.partition("=")
        kind, dot, option = name.removeprefix("--").partition(".")
        if word.startswith("--") and dot and kind in recipe.PLUGIN_KINDS:
            if not equals:
                value = next(queue, "")
                if not value:
                    raise UserError(f"{name} needs a value")
            try:
                options[f"{kind}.{option}"] = yaml.safe_load(value)
            except yaml.YAMLError as error:
                raise UserError(f"the value of {name} is no YAML: {value!r}") from error
        else:
            rest.append(word)
    return options, rest


def _parser() -> tuple[Any, dict[str, list[str]]]:
    """The parser, and the options of each command."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog="fairprune",
        exit_on_error=False,
        version=__version__,
        description="Find the MLP neurons of a language model that react to a demographic word, take them out, and measure whether "
        "it helped.",
        epilog=PATH,
        formatter_class=_help_formatter(),
    )
    commands = parser.add_subcommands(required=False, dest="command")
    known: dict[str, list[str]] = {}
    for name, text in STAGE_HELP.items():
        stage = _stage_parser(name, text)
        commands.add_subcommand(name, stage, help=text)
        known[name] = _options_of(stage)
    for name, make in (
        ("ablate", cli_questions.ablate_parser),
        ("inspect", cli_questions.inspect_parser),
    ):
        plain = make()
        commands.add_subcommand(name, plain, help=plain.description)
        known[name] = _options_of(plain)
    for name, command in COMMANDS.items():
        made = ArgumentParser(exit_on_error=False, description=command.text)
        command.options(made)
        commands.add_subcommand(name, made, help=command.text)
        known[name] = _options_of(made)
    for name, text, actions in (
        (
            "prompts",
            "check a prompt set, or build one",
            (("check", cli_inputs.check_parser), ("build", cli_inputs.build_parser)),
        ),
        ("plugins", "list what is installed", (("list", cli_inputs.list_parser), ("check", cli_inputs.contract_parser))),
        (
            "ask",
            "ask a finished run the article's questions",
            tuple((name, cli_questions.question_parser(name)) for name in cli_questions.QUESTIONS),
        ),
    ):
        group = ArgumentParser(exit_on_error=False, description=text)
        commands.add_subcommand(name, group, help=text)
        inner = group.add_subcommands(required=False, dest="action")
        for action, make in actions:
            made = make()
            inner.add_subcommand(action, made, help=made.description)
            known[name] = [*known.get(name, ()), *_options_of(made)]
    return parser, known


def _help_formatter() -> Any:
    """The parser's formatter, with the lines of the epilog left as they are."""
    from argparse import RawDescriptionHelpFormatter

    from jsonargparse import DefaultHelpFormatter

    return type("Formatter", (DefaultHelpFormatter, RawDescriptionHelpFormatter), {})


def _options_of(parser: Any) -> list[str]:
    return [option for action in parser._actions for option in action.option_strings if option.startswith("--")]


def _stage_parser(command: str, text: str) -> Any:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False, description=text)
    parser.add_argument(
        "model", nargs="?", help="hub id, folder, .gguf file or smollm2-135m; in an existing run folder, its own"
    )
    parser.add_argument("--output", help="the run folder")
    parser.add_argument("--recipe", help="name of a shipped recipe, or a YAML file")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what the run folder holds of this stage and later ones"
    )
    parser.add_argument("--json", action="store_true", help="print run.json instead of the summary")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    if command == "prune":
        parser.add_argument("--plan", help="a plan file to carry out on MODEL, instead of the run folder's own")
    hints = typing.get_type_hints(recipe.Recipe)
    for title in GROUPS:
        group = parser.add_argument_group(title)
        for name, option in recipe.OPTIONS.items():
            if option.group == title:
                _add_option(group, name, hints[name], option)
    return parser


def _add_option(group: Any, name: str, hint: Any, option: Option) -> None:
    """The option of a field of the recipe; its type says how it is given."""
    flag, text = f"--{name.replace('_', '-')}", option.help.replace("%", "%%")
    if type(None) in typing.get_args(hint):
        hint = next(kind for kind in typing.get_args(hint) if kind is not type(None))
    origin = typing.get_origin(hint)
    if hint is bool:
        group.add_argument(flag, action="store_true", help=text)
    elif origin is Mapping or hint == tuple[str, ...]:
        group.add_argument(flag, action="append", metavar=option.metavar, help=f"{text} May be given again.")
    elif hint is recipe.PluginSpec:
        group.add_argument(flag, metavar=option.metavar, help=f"{text} Its options: {flag}.OPTION VALUE")
    elif origin is tuple:
        group.add_argument(flag, metavar=option.metavar, help=text)
    else:
        group.add_argument(flag, type=hint, help=text)


def _stage(command: str, values: dict[str, Any], plugin_options: dict[str, Any]) -> int:
    words = {name.replace("-", "_"): value for name, value in values.items() if value is not None}
    output = words.pop("output", None)
    as_json, quiet = words.pop("json", False), words.pop("quiet", False)
    overwrite, recipe_name, plan = words.pop("overwrite", False), words.pop("recipe", None), words.pop("plan", None)
    if output is None:
        raise UserError(f"`fairprune {command}` needs a run folder: --output DIR")
    for name in [key for key, value in words.items() if value is False]:
        del words[name]
    if "protected_layers" in words:
        try:
            words["protected_layers"] = [int(layer) for layer in words["protected_layers"].split(",")]
        except ValueError:
            raise UserError(
                f"--protected-layers must be numbers such as 0,1. Got {words['protected_layers']!r} instead."
            ) from None
    if "columns" in words:
        words["columns"] = cli_inputs.pairs(words["columns"], "--columns must be FIELD=COLUMN")
    if "judge_prompts" in words:
        words["judge_prompts"] = cli_inputs.pairs(words["judge_prompts"], "--judge-prompts must be NAME=SET")
    words |= plugin_options

    from fairprune_framework import pipeline
    from fairprune_framework.utilities import progress

    def notify(text: str) -> None:
        if not quiet:
            print(f"[{command}] {text}", file=sys.stderr, flush=True)

    common = {**words, "overwrite": overwrite, "notify": notify}
    if recipe_name is not None:
        common["recipe"] = recipe_name
    with progress.shown(not quiet):
        if command == "run":
            done = pipeline.run(common.pop("recipe", None), output, **common)
        elif command == "prune":
            done = pipeline.prune(output=output, plan=plan, **common)
        else:
            done = getattr(pipeline, command)(output=output, **common)
    if as_json:
        print(json.dumps(done.record, indent=1, ensure_ascii=False))
    else:
        from fairprune_framework.reporting.summary import summary

        plan = done.read_plan() if done.folder.has("plan") else None
        evaluation = done.read_evaluation() if done.folder.has("evaluate") else None
        print(summary(done.folder.path, done.recipe, done.record, plan, evaluation))
    return 0


_PLAIN: dict[str, Callable[[dict[str, Any]], int]] = {
    "ablate": cli_questions.ablate,
    "inspect": cli_questions.inspect,
}
_ACTIONS: dict[tuple[str, str], Callable[[dict[str, Any]], int]] = {
    ("prompts", "check"): cli_inputs.prompts_check,
    ("prompts", "build"): cli_inputs.prompts_build,
    ("plugins", "list"): cli_inputs.plugins_list,
    ("plugins", "check"): cli_inputs.plugins_check,
    **{("ask", name): cli_questions.question(name) for name in cli_questions.QUESTIONS},
}

if __name__ == "__main__":
    sys.exit(main())
