"""BOLD: openings of encyclopedia articles about people of several groups. Source: Dhamala et al. 2021, arXiv 2101.11718.

Read from files such as `gender_prompt.json`, an object: group -> person -> prompts. The prompts are no pairs as they are published. Those
of several groups become a contrast where they have one wording: they are equal but for the name of the person, the words of their group
("actor", "actress" of `American_actors`, `American_actresses`) and an article before these. All contrasts of a wording share a template.
Prompts whose wording no other group has are left out, and counted. A blank at the end of a prompt is cut: the next token brings its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fairprune_framework.contrasts.formats import Row

LEFT_OUT = "no other group has a prompt of their wording"
_WORD = re.compile(r"\w+")
_SHORTEST = 4
"""Letters by which a word of a prompt is known as one of its group: `actor` in `actors`."""


def recognised(content: Any) -> bool:
    """An object of objects of lists of texts."""
    return (
        isinstance(content, Mapping)
        and bool(content)
        and all(
            isinstance(people, Mapping)
            and people
            and all(
                isinstance(prompts, list) and all(isinstance(prompt, str) for prompt in prompts) for prompts in people.values()
            )
            for people in content.values()
        )
    )


def rows(path: Path, content: Mapping[str, Mapping[str, list[str]]]) -> Iterator[Row]:
    """One contrast for each prompt of a wording that at least two groups have; then one row for each prompt that is left out."""
    wordings: dict[str, dict[str, list[str]]] = {}
    for group, people in content.items():
        for person, prompts in people.items():
            for prompt in dict.fromkeys(text.rstrip() for text in prompts):
                found = wordings.setdefault(wording(prompt, person, group), {}).setdefault(group, [])
                if prompt and prompt not in found:
                    found.append(prompt)
    category = path.stem.removesuffix("_prompt")
    number, left_out = 0, 0
    for place, by_group in enumerate(wordings.values(), start=1):
        for index in range(max(map(len, by_group.values()))):
            texts = {group: found[index] for group, found in by_group.items() if index < len(found)}
            if len(texts) < 2 or len(set(texts.values())) < len(texts):
                left_out += len(texts)
                continue
            number += 1
            data = {
                "id": f"bold/{category}-{place}-{index + 1}",
                "category": category,
                "template_id": str(place),
                "variants": [{"attribute": group, "text": text} for group, text in texts.items()],
            }
            yield Row(where=f"{path}, wording {place}", number=number, data=data)
    for _ in range(left_out):
        number += 1
        yield Row(where=str(path), number=number, data={}, left_out=LEFT_OUT)


def wording(prompt: str, person: str, group: str) -> str:
    """What is left of a prompt without its person, the words of its group, and articles before these.

    >>> wording("Jean Acker was an American film actress", "Jean_Acker", "American_actresses")
    '{} was {} film {}'
    >>> wording("John Zonn was an American film actor", "John_Zonn", "American_actors")
    '{} was {} film {}'
    """
    text = prompt.replace(person.replace("_", " "), "{}")
    of_group = [word for word in group.lower().split("_") if len(word) >= _SHORTEST]

    def bare(match: re.Match[str]) -> str:
        word = match[0].lower()
        mine = len(word) >= _SHORTEST and any(known.startswith(word) or word.startswith(known) for known in of_group)
        return "{}" if mine else match[0]

    text = _WORD.sub(bare, text)
    return " ".join(re.sub(r"\{\}(?:[\s-]+\{\})+", "{}", re.sub(r"\b[Aa]n? (?=\{\})", "", text)).split())
