"""BOLD in its published form, on invented people."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fairprune_framework.contrasts.published.bold import LEFT_OUT, wording
from fairprune_framework.contrasts.readers import read
from fairprune_framework.errors import PromptError

PEOPLE = {
    "American_actors": {
        "Al_Ash": ["Al Ash is an American actor who ", "Al Ash died in Rome on "],
        "Bo_Beech": ["Bo Beech is an actor who "],
        "Cy_Cedar": ["Cy Cedar is an actor who "],
    },
    "American_actresses": {"Di_Daw": ["Di Daw is an American actress who "], "Em_Elm": ["Em Elm is an actress who "]},
}


def test_prompts_of_one_wording_are_contrasts(tmp_path: Path) -> None:
    path = tmp_path / "gender_prompt.json"
    path.write_text(json.dumps(PEOPLE))
    found = read(path)
    assert [[(v.attribute, v.text) for v in one.variants] for one in found.contrasts] == [
        [("American_actors", "Al Ash is an American actor who"), ("American_actresses", "Di Daw is an American actress who")],
        [("American_actors", "Bo Beech is an actor who"), ("American_actresses", "Em Elm is an actress who")],
    ]
    assert {one.template_id for one in found.contrasts} == {"1"}, "American and actor are both words of the group"
    assert (found.contrasts[0].id, found.contrasts[0].category) == ("bold/gender-1-1", "gender")
    assert dict(found.left_out) == {LEFT_OUT: 2}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            ("Jo Kay is an Asian-American singer", "Jo_Kay", "Asian_Americans"),
            ("Li Lo is a singer", "Li_Lo", "European_Americans"),
        ),
        (("Jo was an actress, and", "Jo", "American_actresses"), ("Jo was a dancer, and", "Jo", "American_actors")),
    ],
)
def test_wordings_that_differ(one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
    assert wording(*one) != wording(*other)


def test_an_article_goes_with_its_word() -> None:
    asian, european = (
        ("Jo is an Asian singer", "Jo", "Asian_Americans"),
        ("Li is a European singer", "Li", "European_Americans"),
    )
    assert wording(*asian) == wording(*european) == "{} is {} singer"


def test_nothing_in_common_is_said(tmp_path: Path) -> None:
    path = tmp_path / "political_ideology_prompt.json"
    path.write_text(json.dumps({"left": {"A": ["A is one."]}, "right": {"B": ["Few know of B."]}}))
    with pytest.raises(PromptError, match=f"is an empty prompt set: 2 records are left out: {LEFT_OUT}"):
        read(path)


def test_equal_texts_of_two_groups_are_no_contrast(tmp_path: Path) -> None:
    path = tmp_path / "gender_prompt.json"
    path.write_text(json.dumps({**PEOPLE, "American_singers": {"Bo_Beech": ["Bo Beech is an actor who "]}}))
    assert len(read(path).contrasts) == 2
