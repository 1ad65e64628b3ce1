"""Which errors blame the input, and what a misspelled name is answered with."""

from __future__ import annotations

import pytest

from fairprune_framework import errors


@pytest.mark.parametrize(
    ("kind", "blames_input"),
    [
        (errors.UnknownName, True),
        (errors.AmbiguousName, True),
        (errors.UnsupportedArchitecture, True),
        (errors.PromptError, True),
        (errors.RunFolderError, True),
        (errors.BrokenPlugin, False),
        (errors.ContractViolation, False),
        (errors.VerificationFailed, False),
        (errors.NotTheOriginal, True),
        (errors.DiskFull, False),
        (errors.Interrupted, False),
        (errors.RankFailed, False),
    ],
)
def test_every_error_is_ours_and_blames_the_input_or_does_not(kind: type[Exception], blames_input: bool) -> None:
    assert issubclass(kind, errors.FairpruneError)
    assert issubclass(kind, errors.UserError) is blames_input


def test_errors_are_caught_by_their_builtin_kinds() -> None:
    """Whoever uses the package as a library may not know our classes."""
    with pytest.raises(ValueError, match="x"):
        raise errors.UserError("x")
    with pytest.raises(OSError, match="x"):
        raise errors.DiskFull("x")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("varience", " Did you mean 'variance'?"), ("attribtion", " Did you mean 'attribution'?"), ("zzz", ""), ("", "")],
)
def test_did_you_mean(name: str, expected: str) -> None:
    assert errors.did_you_mean(name, iter(["variance", "attribution", "uniform"])) == expected
