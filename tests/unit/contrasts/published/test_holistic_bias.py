"""HolisticBias in its published files, on invented words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fairprune_framework.contrasts.readers import read
from fairprune_framework.errors import PromptError

FILES: dict[str, Any] = {
    "descriptors.json": {
        "height": {"up": ["tall", {"descriptor": "long", "preference": "dispreferred"}], "down": ["elfin"]},
        "hair": ["curly", {"descriptor": "uni-coloured", "article": "a"}, {"descriptor": "bearded", "gender": "male"}],
        "lone": {"one": ["only"]},
    },
    "nouns.json": {"female": [["woman", "women"]], "male": [["man", "men"]], "neutral": [["person", "people"]]},
    "sentence_templates.json": {"I'm {noun_phrase}.": {}, "I like {plural_noun_phrase}.": {"must_be_noun": True}},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        (tmp_path / name).write_text(json.dumps(content))
    return tmp_path


def texts(folder: Path, axis: str) -> dict[str, list[str]]:
    return {one.id: [v.text for v in one.variants] for one in read(f"{folder}:{axis}").contrasts}


def test_an_axis_is_crossed_with_templates_and_nouns(folder: Path) -> None:
    assert texts(folder, "height") == {
        "holistic-bias/height/1/alone": ["I'm tall.", "I'm long.", "I'm elfin."],
        "holistic-bias/height/1/woman": ["I'm a tall woman.", "I'm a long woman.", "I'm an elfin woman."],
        "holistic-bias/height/1/man": ["I'm a tall man.", "I'm a long man.", "I'm an elfin man."],
        "holistic-bias/height/1/person": ["I'm a tall person.", "I'm a long person.", "I'm an elfin person."],
        "holistic-bias/height/2/woman": ["I like tall women.", "I like long women.", "I like elfin women."],
        "holistic-bias/height/2/man": ["I like tall men.", "I like long men.", "I like elfin men."],
        "holistic-bias/height/2/person": ["I like tall people.", "I like long people.", "I like elfin people."],
    }


def test_articles_and_genders_of_descriptors(folder: Path) -> None:
    found = texts(folder, "hair")
    assert found["holistic-bias/hair/1/woman"] == ["I'm a curly woman.", "I'm a uni-coloured woman."]
    assert found["holistic-bias/hair/1/man"] == ["I'm a curly man.", "I'm a uni-coloured man.", "I'm a bearded man."]


def test_all_axes_and_their_attributes(folder: Path) -> None:
    found = read(folder).contrasts
    assert {one.category for one in found} == {"height", "hair"}, "an axis of one descriptor has no contrast"
    assert {one.template_id for one in found} == {"1", "2"}
    assert [v.attribute for v in found[0].variants] == ["tall", "long", "elfin"]
    assert found[1].context == "female"


def test_standalone_phrases(folder: Path) -> None:
    phrases = {"height": [{"noun_phrase": "{article} {noun} of size", "plural_noun_phrase": "{noun} of size"}, "a giant"]}
    (folder / "standalone_noun_phrases.json").write_text(json.dumps(phrases))
    found = texts(folder, "height")
    assert found["holistic-bias/height/1/man"][-1] == "I'm a man of size."
    assert found["holistic-bias/height/2/man"][-1] == "I like men of size."
    assert found["holistic-bias/height/1/alone"][-1] == "I'm a giant."


def test_no_such_axis(folder: Path) -> None:
    with pytest.raises(PromptError, match=r"has no axis 'heigth', only height, hair, lone\. Did you mean 'height'"):
        read(f"{folder}:heigth")
    with pytest.raises(PromptError, match=r"has one kind of part to choose. Got 'height:hair'"):
        read(f"{folder}:height:hair")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("nouns.json", {"female": ["woman"]}, "a noun must be a pair of singular and plural. Got 'woman'"),
        ("descriptors.json", {"height": [{"name": "tall"}]}, "an item must be a text, or an object with 'descriptor'"),
        ("descriptors.json", {"height": "tall"}, "'height' must hold an array or an object"),
        ("sentence_templates.json", ["I'm {noun_phrase}."], "must hold a JSON object"),
    ],
)
def test_files_of_another_form(folder: Path, name: str, content: Any, said: str) -> None:
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(PromptError, match=f"{name}.*{said}"):
        read(folder)
