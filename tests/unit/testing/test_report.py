"""What a contract suite says of its checks: each ran, was skipped with a reason, or failed with one."""

from __future__ import annotations

import pytest

from fairprune_framework.testing.report import Check, CheckFailed, CheckSkipped, Report, require, run_checks


def fails() -> None:
    require(False, "2 is not 3")


def raises() -> None:
    {}["x"]


def skips() -> None:
    raise CheckSkipped("nothing to look at")


CHECKS: dict[str, Check] = {"good": lambda: None, "bad": fails, "broken": raises, "moot": skips, "last": lambda: None}


def test_no_check_hides_another() -> None:
    found = run_checks("bias", "x", CHECKS, {})
    assert found.passed == ("good", "last")
    assert dict(found.skipped) == {"moot": "nothing to look at"}
    assert found.failures["bad"] == "2 is not 3"
    assert found.failures["broken"].startswith("KeyError: 'x' (line ")
    assert found.ran == ("good", "bad", "broken", "last")
    assert str(found).splitlines()[0] == "bias x: 4 of 5 checks ran, 2 failed"
    assert len(str(found).splitlines()) == 4
    with pytest.raises(CheckFailed, match="FAILED bad: 2 is not 3"):
        found.raise_if_failed()


def test_exemptions_and_wishes() -> None:
    found = run_checks("bias", "x", CHECKS, {"bad": "known, see its issue", "broken": "the same"})
    assert found.failures == {}
    assert found.skipped["bad"] == "known, see its issue"
    assert found.raise_if_failed() is found
    only = run_checks("bias", "x", CHECKS, {}, only=["good"])
    assert (only.passed, set(only.skipped)) == (("good",), {"bad", "broken", "moot", "last"})


@pytest.mark.parametrize(
    ("skip", "only", "words"),
    [
        ({"god": "x"}, None, "no check 'god' for bias. Did you mean 'good'?"),
        ({}, ["lst"], "no check 'lst' for bias. Did you mean 'last'?"),
        ({"good": "  "}, None, "the check 'good' is skipped without a reason"),
    ],
)
def test_exemptions_that_are_none(skip: dict[str, str], only: list[str] | None, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        run_checks("bias", "x", CHECKS, skip, only)
    assert words in str(caught.value)


def test_a_plugin_that_ends_the_interpreter_has_failed() -> None:
    def leaves() -> None:
        raise SystemExit(0)

    found = run_checks("policy", "x", {"leaving": leaves, "last": lambda: None}, {})
    assert found.passed == ("last",)
    assert found.failures["leaving"].startswith("SystemExit: 0 (line ")


def test_an_interrupt_is_no_failure() -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_checks("bias", "x", {"a": interrupted}, {})


def test_nothing_checked_is_said() -> None:
    empty = Report(kind="bias", plugin="x", checks=("a",), passed=(), skipped={"a": "no model"}, failures={})
    assert str(empty) == "bias x: 0 of 1 checks ran, 0 failed\n  skipped a: no model"
