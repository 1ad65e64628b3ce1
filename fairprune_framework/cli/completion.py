"""`fairprune completion`: a script that completes commands and options in a shell."""

from __future__ import annotations

import importlib.util
from typing import Any

from fairprune_framework.cli.command import Command
from fairprune_framework.errors import UserError
from fairprune_framework.utilities.aside import answer

SHELLS = ("bash", "zsh", "tcsh", "fish")


def _add_options(parser: Any) -> None:
    parser.add_argument("shell", choices=list(SHELLS), help="for which shell to print a script")


def _run(values: dict[str, Any]) -> int:
    if importlib.util.find_spec("shtab") is None:
        raise UserError("shell completion needs shtab: pip install 'fairprune_framework[completion]'")
    from fairprune_framework.cli.main import build_parser, collect

    parser, _ = build_parser(collect())
    answer(parser.get_completion_script(f"shtab-{values['shell']}"))
    return 0


COMMANDS = (
    Command(name="completion", help="print a script that completes commands and options", add_options=_add_options, run=_run),
)
