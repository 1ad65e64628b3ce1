"""Where words begin and end in any script: Unicode text segmentation (UAX 29) through the library `regex`.

Deviations from UAX 29, each because a span of characters that differ is widened by it:

- punctuation inside a word of Latin letters or digits is a border (`man's`, `l'homme`, `3.5`), so that what follows it stays matched;
- in Thai and Lao a vowel that is written before or after its consonant stays with it.

Scripts that are written without blanks (Han, kana, Thai, Khmer, ...) have a border after each letter with its marks; a span there is
widened to the borders of tokens by the alignment. Nothing is normalised: a position is one of the text as it was given.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

WINDOW = 64
"""Characters on either side that are looked at; blanks end the view sooner."""
_BEFORE_CONSONANT = frozenset("\u0e40\u0e41\u0e42\u0e43\u0e44\u0ec0\u0ec1\u0ec2\u0ec3\u0ec4")
_AFTER_CONSONANT = frozenset("\u0e30\u0e32\u0e33\u0e45\u0eb0\u0eb2\u0eb3")


def inside_word(text: str, position: int) -> bool:
    """Whether a word goes on at a position of a text.

    >>> inside_word("a woman", 3), inside_word("a woman", 1), inside_word("man's", 3), inside_word("\u9ed1\u4eba", 1)
    (True, False, False, False)
    """
    if not 0 < position < len(text):
        return False
    before, after = text[position - 1], text[position]
    if before.isascii() and after.isascii():
        return before.isalnum() and after.isalnum()
    if before.isspace() or after.isspace():
        return False
    if before in _BEFORE_CONSONANT or after in _AFTER_CONSONANT:
        return True
    start, end = max(position - WINDOW, 0), min(position + WINDOW, len(text))
    start += max((i + 1 for i, char in enumerate(text[start:position]) if char.isspace()), default=0)
    end = next((i for i in range(position, end) if text[i].isspace()), end)
    words, characters = _borders(text[start:end])
    if position - start not in characters:
        return True  # a character is never cut, whatever it is
    if position - start in words:
        return False
    if _of_word(before) and _of_word(after):
        return True
    return not any(
        char.isdigit() or unicodedata.name(char, "").startswith("LATIN") for char in text[position - 1 : position + 2]
    )


@lru_cache(maxsize=1024)
def _borders(text: str) -> tuple[frozenset[int], frozenset[int]]:
    """Borders of words, and of characters (extended grapheme clusters)."""
    import regex

    words = frozenset(match.start() for match in regex.finditer(r"(?w)\b", text))
    return words, frozenset(match.end() for match in regex.finditer(r"\X", text))


def _of_word(char: str) -> bool:
    return char.isalnum() or unicodedata.category(char)[0] == "M" or unicodedata.category(char) in ("Cf", "Sk", "So")
