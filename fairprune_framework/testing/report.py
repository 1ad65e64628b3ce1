"""The result of a contract suite: checks that ran, passed, failed or were skipped, with reasons."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from fairprune_framework.errors import did_you_mean, raised

Check = Callable[[], None]
"""Raises `CheckFailed` (or any error) if the plugin violates its contract, `CheckSkipped` if there is nothing to check."""


class CheckFailed(AssertionError):
    """The plugin violates its interface."""


class CheckSkipped(Exception):
    """The check does not apply to this plugin; the message is the reason."""


def require(condition: object, text: str) -> None:
    """Raise `CheckFailed` with this message unless the condition holds."""
    if not condition:
        raise CheckFailed(text)


@dataclass(frozen=True, kw_only=True)
class Report:
    """The results of a suite. `str(report)` is for people, `raise_if_failed()` for pytest."""

    kind: str
    plugin: str
    checks: tuple[str, ...]
    """All checks of the suite, in order."""
    passed: tuple[str, ...]
    skipped: Mapping[str, str]
    """Check -> reason why it did not run."""
    failures: Mapping[str, str]
    """Check -> what failed."""

    @property
    def ran(self) -> tuple[str, ...]:
        """The checks that ran, passed or not."""
        return tuple(name for name in self.checks if name not in self.skipped)

    def __str__(self) -> str:
        lines = [f"{self.kind} {self.plugin}: {len(self.ran)} of {len(self.checks)} checks ran, {len(self.failures)} failed"]
        lines += [f"  skipped {name}: {reason}" for name, reason in self.skipped.items()]
        lines += [f"  FAILED {name}: {text}" for name, text in self.failures.items()]
        return "\n".join(lines)

    def raise_if_failed(self) -> Report:
        """Return the report itself.

        Raises:
            CheckFailed: a check failed; the message lists all failures.
        """
        if self.failures:
            raise CheckFailed(str(self))
        return self


def run_checks(
    kind: str, plugin: str, checks: Mapping[str, Check], skip: Mapping[str, str], only: Collection[str] | None = None
) -> Report:
    """Run every check, also after failures.

    Args:
        skip: check -> reason; an exemption needs both.
        only: run only these; the others count as skipped.

    Raises:
        ValueError: an unknown check in `skip` or `only`, or an exemption without a reason.
    """
    for name in (*skip, *(only or ())):
        if name not in checks:
            raise ValueError(f"no check {name!r} for {kind}.{did_you_mean(name, checks)} There are: {', '.join(checks)}.")
    if bare := [name for name, reason in skip.items() if not reason.strip()]:
        raise ValueError(f"the check {bare[0]!r} is skipped without a reason")
    passed, skipped, failures = [], {}, {}
    for name, check in checks.items():
        if name in skip:
            skipped[name] = skip[name]
        elif only is not None and name not in only:
            skipped[name] = "not requested"
        else:
            try:
                check()
            except CheckSkipped as reason:
                skipped[name] = str(reason)
            except CheckFailed as failure:
                failures[name] = str(failure)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                failures[name] = f"{raised(error)} (line {where.lineno} of {where.filename})"
            else:
                passed.append(name)
    return Report(kind=kind, plugin=plugin, checks=tuple(checks), passed=tuple(passed), skipped=skipped, failures=failures)
