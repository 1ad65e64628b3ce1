"""Where two continuations part: by tokens, in characters, whatever the tokens are."""

from __future__ import annotations

import pytest

from fairprune_framework.evaluation.metrics.generation import Continuation, _continuation, first_difference


class Bytes:
    """A tokenizer of single bytes: a token may hold a part of a character. 0 is special."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return bytes(value for value in ids if value).decode("utf-8", errors="replace")


def written(text: str) -> Continuation:
    return _continuation(Bytes(), [*text.encode(), 0])


def test_tokens_of_parts_of_characters_add_up_to_the_text() -> None:
    found = written("né 男")
    assert found.text == "né 男"
    assert "".join(found.tokens) == "né 男"
    assert found.tokens == ["n", "", "é", " ", "", "", "男", ""]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("same", "same", None),
        ("abc", "abd", {"token": 2, "before": [2, 3], "after": [2, 3]}),
        ("abc", "ab", {"token": 2, "before": [2, 3], "after": [2, 2]}),
        ("", "a", {"token": 0, "before": [0, 0], "after": [0, 1]}),
        ("aé", "aè", {"token": 2, "before": [1, 2], "after": [1, 2]}),
    ],
)
def test_first_difference(before: str, after: str, expected: dict[str, object] | None) -> None:
    assert first_difference(written(before), written(after)) == expected
