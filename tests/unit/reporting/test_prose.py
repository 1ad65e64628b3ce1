"""Sentences and pieces of text of the report."""

from __future__ import annotations

from fairprune_framework.reporting.prose import tokens_apart


def test_the_token_is_cut_out_of_the_words_around_it() -> None:
    first, second = tokens_apart("he was lost", "he was loud now", {"token": 4, "before": [9, 11], "after": [9, 10]})
    assert [(piece.text, piece.differs, piece.first) for piece in first] == [
        ("he was ", False, False),
        ("lo", True, False),
        ("st", True, True),
    ]
    assert "".join(piece.text for piece in second) == "he was loud now"
    assert [piece.text for piece in second if piece.first] == ["u"]
