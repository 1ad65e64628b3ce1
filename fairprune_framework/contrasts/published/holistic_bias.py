"""HolisticBias: sentence templates with noun phrases of a descriptor and a noun. Source: Smith et al. 2022, arXiv 2205.09209.

Read from the folder of its files. A contrast is a template with a noun (or with none, where a descriptor can stand alone), filled with
every descriptor of an axis: category is the axis, `template_id` the number of the template. Phrases are made as its authors make them:
a descriptor that has a gender joins nouns of that gender alone, an article is that of the descriptor unless it names another, and
`standalone_noun_phrases.json`, where it is there, adds phrases such as "a person with a limp". Their variations of spelling and
capitals are not made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairprune_framework.contrasts.formats import Row, document
from fairprune_framework.errors import PromptError, did_you_mean

_FILES = ("descriptors.json", "nouns.json", "sentence_templates.json")
_STANDALONE = "standalone_noun_phrases.json"
_NOUN, _ARTICLE = "{noun}", "{article}"


@dataclass(frozen=True, kw_only=True)
class _Noun:
    singular: str
    plural: str
    gender: str


@dataclass(frozen=True, kw_only=True)
class _Phrase:
    """What fills a template: a descriptor, or a standalone phrase with places for a noun and its article."""

    name: str
    singular: str
    plural: str
    gender: str | None = None

    @property
    def has_noun(self) -> bool:
        return _NOUN in self.singular

    def filled(self, template: str, noun: _Noun | None) -> str:
        one, many = self.singular, self.plural
        if noun is not None:
            one = one.replace(_ARTICLE, _article(noun.singular)).replace(_NOUN, noun.singular)
            many = many.replace(_ARTICLE, "").replace(_NOUN, noun.plural).lstrip()
        return template.replace("{noun_phrase}", one).replace("{plural_noun_phrase}", many)


def recognised(path: Path) -> bool:
    """A folder that holds its files."""
    return all((path / name).is_file() for name in _FILES)


def rows(path: Path, axis: str | None = None) -> Iterator[Row]:
    """One contrast for each axis, template and noun with at least two phrases, made one after the other.

    Args:
        path: the folder.
        axis: the only one to read, such as `nationality`; None: all.

    Raises:
        PromptError: a file that is not of the published form, or no such axis.
    """
    phrases, nouns, templates = _phrases(path), _nouns(path / "nouns.json"), _object(path / "sentence_templates.json")
    if axis is not None and axis not in phrases:
        raise PromptError(f"{path} has no axis {axis!r}, only {', '.join(phrases)}.{did_you_mean(axis, phrases)}")
    number = 0
    for name in phrases if axis is None else (axis,):
        for place, (template, settings) in enumerate(templates.items(), start=1):
            alone = not (isinstance(settings, Mapping) and settings.get("must_be_noun"))
            for noun in (None, *nouns) if alone else nouns:
                texts: dict[str, str] = {}
                for phrase in phrases[name]:
                    fits = noun is None or phrase.gender in (None, noun.gender)
                    if fits and phrase.has_noun is (noun is not None):
                        texts.setdefault(phrase.filled(template, noun), phrase.name)
                if len(texts) < 2:
                    continue
                number += 1
                data = {
                    "id": f"holistic-bias/{name}/{place}/{noun.singular if noun else 'alone'}",
                    "category": name,
                    "template_id": str(place),
                    "context": noun.gender if noun else "",
                    "variants": [{"attribute": attribute, "text": text} for text, attribute in texts.items()],
                }
                yield Row(where=f"{path}, {name}, template {place}", number=number, data=data)


def _phrases(path: Path) -> dict[str, list[_Phrase]]:
    found: dict[str, list[_Phrase]] = {}
    for axis, buckets in _object(path / _FILES[0]).items():
        items = buckets if isinstance(buckets, list) else [item for bucket in buckets.values() for item in bucket]
        for item in items:
            given = _given(item, "descriptor", path / _FILES[0])
            name = given["descriptor"]
            article, gender = given.get("article") or _article(name), given.get("gender")
            found.setdefault(axis, []).extend(
                (
                    _Phrase(name=name, singular=name, plural=name),
                    _Phrase(name=name, singular=f"{article} {name} {_NOUN}", plural=f"{name} {_NOUN}", gender=gender),
                )
            )
    if (path / _STANDALONE).is_file():
        for axis, items in _object(path / _STANDALONE).items():
            for item in items:
                given = _given(item, "noun_phrase", path / _STANDALONE)
                one = given["noun_phrase"]
                name = one.replace(_ARTICLE, "").replace(_NOUN, "").strip()
                found.setdefault(axis, []).append(
                    _Phrase(name=name, singular=one, plural=given.get("plural_noun_phrase") or one)
                )
    return found


def _nouns(file: Path) -> Sequence[_Noun]:
    found = []
    for gender, pairs in _object(file).items():
        for pair in pairs:
            if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(word, str) for word in pair):
                raise PromptError(f"{file}: a noun must be a pair of singular and plural. Got {pair!r:.60} instead.")
            found.append(_Noun(singular=pair[0], plural=pair[1], gender=gender))
    return found


def _object(file: Path) -> Mapping[str, Any]:
    content = document(file)
    if not isinstance(content, Mapping) or not content:
        raise PromptError(f"{file} must hold a JSON object, as HolisticBias is published")
    if bad := next((key for key, value in content.items() if not isinstance(value, dict | list)), None):
        raise PromptError(f"{file}: {bad!r} must hold an array or an object, as HolisticBias is published")
    return content


def _given(item: Any, field: str, file: Path) -> Mapping[str, str]:
    given = {field: item} if isinstance(item, str) else item
    if not isinstance(given, Mapping) or not isinstance(given.get(field), str) or not given[field].strip():
        raise PromptError(f"{file}: an item must be a text, or an object with {field!r}. Got {item!r:.60} instead.")
    return given


def _article(word: str) -> str:
    return "an" if word[0].lower() in "aeiou" else "a"
