"""What a field of the recipe means elsewhere: to a run folder, and on the command line. It stands with the field, as metadata."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

Stage = Literal["read", "audit", "score", "plan", "prune", "evaluate", "report"]
Group = Literal["what to audit", "strategies", "how much", "text", "judging", "model and machine", "many devices"]
GROUPS: tuple[Group, ...] = get_args(Group)
"""Groups of options in the help, in order."""
_KEY = "option"


@dataclass(frozen=True, kw_only=True)
class Option:
    """The metadata of a field.

    Attributes:
        help: what it means, as `--help` shows it.
        group: its group in the help; None: it is the positional MODEL.
        stage: the first stage whose result depends on it; None: no result does.
        adopted: whether `plan` and `prune` depend on it where the plan came as a file, when neither prompts nor scorers had a part.
        execution: whether it says how one command computes: a run folder does not hand it on to the next command.
        unsafe: whether it lets code of strangers run: only the command line and Python calls may give it, and no folder keeps it.
        metavar: what stands for its value in the help.
    """

    help: str
    group: Group | None = None
    stage: Stage | None = None
    adopted: bool = False
    execution: bool = False
    unsafe: bool = False
    metavar: str | None = None


def option(
    default: Any,
    help: str,
    *,
    group: Group | None = None,
    stage: Stage | None = None,
    adopted: bool = False,
    execution: bool = False,
    unsafe: bool = False,
    metavar: str | None = None,
) -> Any:
    """A field of the recipe with its `Option`; the arguments are those of `Option`."""
    described = Option(
        help=help, group=group, stage=stage, adopted=adopted, execution=execution, unsafe=unsafe, metavar=metavar
    )
    return field(default=default, metadata={_KEY: described})


def options_of(recipe: type) -> dict[str, Option]:
    """Field -> its `Option`, in the order of the fields."""
    return {item.name: cast(Option, item.metadata[_KEY]) for item in dataclasses.fields(recipe)}


def storable(value: Any) -> bool:
    """No text in a value, however deep, holds half of a surrogate pair, which no file can."""
    if dataclasses.is_dataclass(value):
        value = vars(value)
    if isinstance(value, Mapping):
        return all(map(storable, (*value.keys(), *value.values())))
    if isinstance(value, (list, tuple)):
        return all(map(storable, value))
    return not isinstance(value, str) or not any("\ud800" <= letter <= "\udfff" for letter in value)
