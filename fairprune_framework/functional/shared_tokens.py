"""The unmodified tokens of texts that differ in a few words: what CrowS-Pairs scores, and a quality that no group word disturbs.

Nangia et al. 2020 (arXiv 2010.00133, section 3) score the tokens that both sentences share, given those that differ, so that frequency and
length of the group words themselves do not count. A causal model gives a shared token before the first difference the same probability in
all texts; what is scored are the shared tokens behind it, each given all that stands before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

Places = tuple[tuple[int, ...], ...]


def shared_places(texts: Sequence[Sequence[int]]) -> Places:
    """Where each text holds the tokens that all of them share, in order; for two texts `get_span` of the authors' script.

    Args:
        texts: token ids, at least two texts.

    Returns:
        For each text its places; all texts have equally many.

    >>> shared_places([(5, 1, 6, 7), (5, 2, 3, 6, 7)])
    ((0, 2, 3), (0, 3, 4))
    """
    first, *others = texts
    found = [_matched(first, other) for other in others]
    everywhere = [place for place in range(len(first)) if all(place in matched for matched in found)]
    return (tuple(everywhere), *(tuple(matched[place] for place in everywhere) for matched in found))


def _matched(first: Sequence[int], other: Sequence[int]) -> dict[int, int]:
    """Place in the first text -> place in the other. Without difflib's rule for frequent tokens of texts of 200 and more."""
    blocks = SequenceMatcher(None, first, other, autojunk=False).get_matching_blocks()
    return {block.a + step: block.b + step for block in blocks for step in range(block.size)}


def scored_places(texts: Sequence[Sequence[int]]) -> Places:
    """As `shared_places`, from the first place on at which the texts differ; never place 0, which nothing predicts.

    >>> scored_places([(5, 1, 6, 7), (5, 2, 3, 6, 7)])
    ((2, 3), (3, 4))
    >>> scored_places([(5, 6, 1), (5, 6, 2)])
    ((), ())
    >>> scored_places([(5, 6, 7), (5, 9, 6, 7)])
    ((1, 2), (2, 3))
    """
    shortest = min(len(text) for text in texts)
    common = next((i for i in range(shortest) if len({text[i] for text in texts}) > 1), shortest)
    places = shared_places(texts)
    behind = [index for index in range(len(places[0])) if all(own[index] >= max(common, 1) for own in places)]
    return tuple(tuple(own[index] for index in behind) for own in places)
