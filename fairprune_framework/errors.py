"""Every error that this package raises on purpose, and the exit code that each one means.

An error says what, where, what came, what was expected and what to do next. `UserError` and its children mean that the
input is wrong: the command line prints their text on one line and exits with 2. Everything else exits with 1.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable


class FairpruneError(Exception):
    """Base of all errors of this package."""


class UserError(FairpruneError, ValueError):
    """The user's input is wrong; the text says how to mend it. Exit code 2."""


class UnknownName(UserError):
    """A plugin, recipe, task or option that nobody offers."""


class AmbiguousName(UserError):
    """Two distributions offer the same name, or two adapters accept the same model."""


class UnsupportedArchitecture(UserError):
    """No adapter, or not this one, can name the prunable neurons of the model."""


class PromptError(UserError):
    """A prompt set, or one contrast of it, cannot be used."""


class RunFolderError(UserError):
    """The run folder holds something other than what this command expects."""


class BrokenPlugin(FairpruneError):
    """A plugin could not be imported, or its interface version is not ours. The cause is chained."""


class ContractViolation(FairpruneError):
    """A plugin returned something that its interface does not allow. The text names the plugin and its distribution."""


class VerificationFailed(FairpruneError):
    """A pruned model did not behave as its masked original; nothing was kept."""


class DiskFull(FairpruneError, OSError):
    """A file could not be written for want of space; nothing half-written stays."""


class Interrupted(FairpruneError):
    """SIGTERM came during an audit; what was done is in its checkpoint. Exit code 143."""


class RankFailed(FairpruneError):
    """Another rank of an audit failed or died; the text says which, why, and that its checkpoint stands."""


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the nearest choice, or an empty text.

    >>> did_you_mean("varience", ["variance", "uniform"])
    " Did you mean 'variance'?"
    """
    close = difflib.get_close_matches(name, list(choices), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def shortened(text: str, most: int = 80) -> str:
    """The text with its middle left out where it is longer than `most` characters.

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
