"""The sentence that a contrast stands in: contrasts of several templates may share it, and then are no independent evidence."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Iterator, Sequence
from difflib import SequenceMatcher
from functools import cache
from typing import Any, TypeVar

from fairprune_framework.contrasts.schema import Contrast

WORDS = 3
"""Words that the variants of a contrast must share, at least, to be called a sentence."""
COMPARED = 128 * 128
"""Words of one text times words of another, between what both begin and end with, that are compared one by one: the time that it takes may
grow with the cube of their number. Of longer stretches all counts as different."""
GAP = "_"
"""Stands for what differs."""
BETWEEN_BLANKS = 2
"""Letters of a script that is written without blanks which count as one word."""
Node = TypeVar("Node", bound=Hashable)


def sentence(contrast: Contrast) -> str | None:
    """The words that all variants share, in small letters, with a gap for what differs; "an" is "a". None where that says too little:
    fewer words than `WORDS`, or than differ.

    >>> from fairprune_framework.contrasts.schema import Variant
    >>> texts = ("I met an old man today.", "I met a young man today.")
    >>> variants = tuple(Variant(attribute=text, text=text) for text in texts)
    >>> sentence(Contrast(id="1", category="age", template_id="1", variants=variants))
    'i met a _ man today .'
    """
    texts = [_split(variant.text) for variant in contrast.variants]
    shared = _frame(texts)
    kept = _size([word for word in shared if word != GAP])
    if kept < WORDS or kept < max(_size(words) for words in texts) - kept:
        return None
    return " ".join(shared)


def sentences_of(contrasts: Iterable[Contrast]) -> dict[str, str]:
    """id -> `sentence`, of the contrasts that have one."""
    return {contrast.id: found for contrast in contrasts if (found := sentence(contrast)) is not None}


def connections(stands_in: str | None, neutral_of: str | None) -> list[tuple[str, str]]:
    """What a contrast shares with those that it is drawn with: its sentence, and the demographic template that a control stands in."""
    known = {"sentence": stands_in, "template": neutral_of}
    return [(kind, name) for kind, name in known.items() if name is not None]


def joined(nodes: Sequence[Node], keys: Iterable[Iterable[Hashable]]) -> list[Node | None]:
    """For each entry the smallest node that its own is connected with by keys that they share; None where that is itself alone.

    >>> joined(["a", "b", "c", "b"], [["x"], ["y"], [], ["x"]])
    ['a', 'a', None, 'a']
    """
    parent: dict[Node, Node] = {}
    first: dict[Hashable, Node] = {}

    def root(node: Node) -> Node:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for node, own in zip(nodes, keys, strict=True):
        parent.setdefault(node, node)
        for key in own:
            one, other = root(node), root(first.setdefault(key, node))
            parent[one] = other
    members: dict[Node, list[Any]] = {}
    for node in parent:
        members.setdefault(root(node), []).append(node)
    smallest = {top: min(own) if len(own) > 1 else None for top, own in members.items()}
    return [smallest[root(node)] for node in nodes]


def _frame(texts: Sequence[Sequence[str]]) -> list[str]:
    """Words that all texts share, in their order, with one gap wherever something differs."""
    reference = texts[0]
    kept = [True] * len(reference)
    opens = [False] * (len(reference) + 1)  # before which word another text has more
    for other in texts[1:]:
        if len(other) == len(reference):
            kept = [keeps and a == b for keeps, a, b in zip(kept, reference, other, strict=True)]
            continue
        inside = [False] * len(reference)
        end = 0
        for start, at, size in _blocks(reference, other):
            opens[start] = opens[start] or at > end
            inside[start : start + size] = [True] * size
            end = at + size
        kept = [keeps and here for keeps, here in zip(kept, inside, strict=True)]
    found: list[str] = []
    for word, keeps, more in zip([*reference, ""], [*kept, False], opens, strict=True):
        if more or not (keeps or word == ""):
            found += [] if found and found[-1] == GAP else [GAP]
        if keeps:
            found.append(word)
    return found


def _blocks(one: Sequence[str], other: Sequence[str]) -> Iterator[tuple[int, int, int]]:
    """Stretches of equal words, (place in one, in the other, words), with an empty one at both ends."""
    shortest = min(len(one), len(other))
    start = next((i for i in range(shortest) if one[i] != other[i]), shortest)
    end = next((i for i in range(shortest - start) if one[-1 - i] != other[-1 - i]), shortest - start)
    yield 0, 0, start
    inner, others = one[start : len(one) - end], other[start : len(other) - end]
    if inner and len(inner) * len(others) <= COMPARED:
        for block in SequenceMatcher(None, inner, others, autojunk=False).get_matching_blocks()[:-1]:
            yield start + block.a, start + block.b, block.size
    yield len(one) - end, len(other) - end, end
    yield len(one), len(other), 0


def _size(words: Iterable[str]) -> float:
    """Words that begin with a letter or digit; of a script without blanks letters count less."""
    return sum(
        1.0 if word.isascii() or not _unblanked().match(word) else 1 / BETWEEN_BLANKS for word in words if word[0].isalnum()
    )


def _split(text: str) -> list[str]:
    """Words and signs; of a script that is written without blanks letters."""
    found: list[str] = (_ASCII if text.isascii() else _words()).findall(text.lower())
    return ["a" if word == "an" else word for word in found]


_ASCII = re.compile(r"\w+|[^\w\s]")
_SCRIPTS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"


@cache
def _words() -> Any:
    import regex

    return regex.compile(rf"[{_SCRIPTS}]|[\w--[{_SCRIPTS}]]+|[^\w\s]", regex.V1)


@cache
def _unblanked() -> Any:
    import regex

    return regex.compile(rf"[{_SCRIPTS}]", regex.V1)
