"""What a command of `fairprune` is. Each module of this package exports `COMMANDS`; `main.py` collects them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Group:
    """A name under which several commands stand, such as `prompts`."""

    name: str
    help: str


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command.

    Attributes:
        name: what is typed, after the name of the group if there is one.
        help: its line in the help.
        add_options: adds its options to its parser.
        run: does the work and returns the exit code. It takes what was given: option (with underscores) -> value; options that
            were not given are absent, or None.
        group: the group that it belongs to.
        optional_first: its first word may be left out before another one; options may stand between the two.
        plugin_options: whether it takes dotted options of plugins, `--bias.relative true`; they come as `{"bias.relative": True}`.
    """

    name: str
    help: str
    add_options: Callable[[Any], None]
    run: Callable[[dict[str, Any]], int]
    group: Group | None = None
    optional_first: bool = False
    plugin_options: bool = False

    @property
    def title(self) -> str:
        """What is typed: `run`, `prompts check`."""
        return self.name if self.group is None else f"{self.group.name} {self.name}"
