"""Winogender in its published columns, on invented sentences."""

from __future__ import annotations

from pathlib import Path

import pytest

from fairprune_framework.contrasts.readers import read
from fairprune_framework.errors import PromptError

PRONOUNS = {"male": "he", "female": "she", "neutral": "they"}


def table(path: Path, groups: list[str], extra: str = "") -> Path:
    lines = [
        f"{group}.{name}.txt\tIn {group} the baker said that {pronoun} would wait.\n"
        for name, pronoun in PRONOUNS.items()
        for group in groups
    ]
    path.write_text("sentid\tsentence\n" + "".join(lines) + extra)
    return path


def test_three_sentences_are_a_contrast_wherever_they_stand(tmp_path: Path) -> None:
    found = read(table(tmp_path / "all_sentences.tsv", ["baker.guest.0", "baker.someone.1"])).contrasts
    assert [(one.id, one.category, one.template_id) for one in found] == [
        ("winogender/baker.guest.0", "gender", "baker"),
        ("winogender/baker.someone.1", "gender", "baker"),
    ]
    assert [(v.attribute, v.text) for v in found[1].variants] == [
        (name, f"In baker.someone.1 the baker said that {pronoun} would wait.") for name, pronoun in PRONOUNS.items()
    ]


def test_names_that_do_not_fit(tmp_path: Path) -> None:
    path = table(tmp_path / "all_sentences.tsv", ["baker.guest.0"], extra="baker.txt\tA sentence.\n")
    with pytest.raises(PromptError, match=r"line 5: the 'sentid' of Winogender must name .* Got 'baker.txt'"):
        read(path)
    assert len(read(path, bad="skip").contrasts) == 1


def test_a_sentence_without_its_like_is_no_contrast(tmp_path: Path) -> None:
    path = tmp_path / "all_sentences.tsv"
    path.write_text("sentid\tsentence\nbaker.guest.0.male.txt\tHe waited.\n")
    with pytest.raises(PromptError, match=r"line 2: contrast 'winogender/baker.guest.0' has 1 variant"):
        read(path)
