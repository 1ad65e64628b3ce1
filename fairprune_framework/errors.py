"""The errors of this package and their exit codes.

A message states what, where, the value found, the value expected, and the next step. `UserError` and its subclasses mean invalid
input, `PluginError` and its subclasses a plugin that breaks its contract: the command line prints their message on one line and exits
with 2. Everything else exits with 1.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable

LONGEST = 1000
"""Characters of a message, whatever a file holds that it quotes; the command line prints half of it."""


class FairpruneError(Exception):
    """Base of all errors of this package."""

    by: object = None
    """The statistic, or the objective, in which it came up, where one is to blame."""

    def __str__(self) -> str:
        return shortened(super().__str__(), LONGEST)


class UserError(FairpruneError, ValueError):
    """Invalid input; the message contains the remedy. Exit code 2."""


class UnknownName(UserError):
    """No such plugin, recipe, task or option."""


class AmbiguousName(UserError):
    """Two distributions offer the same name, or two adapters accept the same model."""


class UnsupportedArchitecture(UserError):
    """No adapter, or not the requested one, can locate the prunable neurons of the model."""


class PromptError(UserError):
    """A prompt set, or one of its contrasts, cannot be used."""


class RunFolderError(UserError):
    """The content of the run folder does not match the command."""


class PluginError(FairpruneError):
    """A plugin is at fault: another one, or another release of it, is the remedy. Exit code 2."""


class BrokenPlugin(PluginError):
    """A plugin could not be imported, has another interface version, or raised. The cause is chained."""


class ContractViolation(PluginError):
    """A plugin declared or returned something invalid. The message names the plugin, or its statistic."""


class VerificationFailed(FairpruneError):
    """A pruned model differs from its masked original; nothing was kept."""


class NotTheOriginal(VerificationFailed, UserError):
    """What a restoration and a model give is not, bit by bit, what was pruned: one of the two was changed. Exit code 2."""


class DiskFull(FairpruneError, OSError):
    """A file could not be written because the disk is full; no partial file remains."""


class Interrupted(FairpruneError):
    """SIGTERM during an audit; the progress is in its checkpoint. Exit code 143."""


class RankFailed(FairpruneError):
    """Another rank of an audit failed or died; the message says which and why. Its checkpoint is kept."""


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the nearest choice, or an empty text.

    >>> did_you_mean("varience", ["variance", "uniform"])
    " Did you mean 'variance'?"
    """
    close = difflib.get_close_matches(name, list(choices), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def raised(error: BaseException) -> str:
    """Type and text of what foreign code raised, whatever its text does.

    >>> raised(KeyError("x"))
    "KeyError: 'x'"
    """
    text = text_of(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def text_of(error: BaseException) -> str:
    """The text of what foreign code raised; to say so where it cannot be read is all that can be done."""
    try:
        return str(error)
    except Exception:
        return "its text cannot be read"


def shortened(text: str, most: int = 80) -> str:
    """The text, with its middle omitted if it is longer than `most` characters.

    >>> shortened("abcdefghij", 5)
    'ab...ij'
    """
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-(most // 2) :]}"


def shown(value: object) -> str:
    """`repr(value)` for a message: at most 200 characters, whatever the value holds.

    >>> shown("x" * 1000)[:12], len(shown("x" * 1000))
    ("'xxxxxxxxxxx", 80)
    """
    brief = reprlib.Repr()
    brief.maxstring = brief.maxother = 80
    try:
        return shortened(brief.repr(value), 197)
    except ValueError:  # a number with more digits than Python prints
        return f"a number of type {type(value).__name__}, too long to print"
