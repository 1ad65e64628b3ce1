"""What is printed inside goes to stderr, and stdout is as before, also after an error."""

from __future__ import annotations

import pytest

from fairprune_framework.utilities.aside import prints_aside


def test_prints_go_to_stderr_and_back(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), prints_aside():
        print("by the way")
        raise KeyError
    print("the answer")
    out, err = capsys.readouterr()
    assert (out, err) == ("the answer\n", "by the way\n")
