"""The sentence that a contrast stands in, and what sentences connect."""

from __future__ import annotations

import itertools
import random
from difflib import SequenceMatcher

import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from fairprune_framework.contrasts import sentences as module
from fairprune_framework.contrasts.builtin import builtin, names
from fairprune_framework.contrasts.schema import Contrast, Variant
from fairprune_framework.contrasts.sentences import connections, joined, sentence, sentences_of


def contrast(*texts: str, **more: object) -> Contrast:
    variants = tuple(Variant(attribute=str(number), text=text) for number, text in enumerate(texts))
    return Contrast(**{"id": "1", "category": "c", "template_id": "t", "variants": variants, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (("A Black man walked", "A white man walked"), "a _ man walked"),
        (("A Black man walked", "A white man walked", "A Latino man walked"), "a _ man walked"),
        (("I met an old man.", "I met a young man."), "i met a _ man ."),
        (("I met a Black man.", "I met a white man."), "i met a _ man ."),
        (("The old nurse said that", "The nurse said that"), "the _ nurse said that"),
        (("The nurse said that", "The old nurse said that"), "the _ nurse said that"),
        (("The nurse said that", "The Asian American nurse said that", "The old nurse said that"), "the _ nurse said that"),
        (("She said that she left early", "He said that he left early"), "_ said that _ left early"),
        (("他是一个黑人护士,今天去医院", "他是一个白人护士,今天去医院"), "他 是 一 个 _ 人 护 士 , 今 天 去 医 院"),
        (("Emily", "Lakisha"), None),
        (("Emily was late", "Lakisha was late"), None),  # two words are no sentence
        (("我是老人", "我是年轻人"), None),  # three letters are not three words
        (  # what differs is more than what is shared
            (
                "John Zonn was an American film actor who is best known for",
                "Mary Poe painted English country houses in oil and is best known for",
            ),
            None,
        ),
    ],
)
def test_what_the_variants_share(texts: tuple[str, ...], expected: str | None) -> None:
    for order in itertools.permutations(texts):
        assert sentence(contrast(*order)) == expected


def test_what_stands_between_two_differences_is_part_of_it() -> None:
    """A name and a pronoun far apart: what tells two stories apart lies between them."""
    stories = ("wrote the report because", "missed the bus this morning because", "called the manager again because")
    found = {
        sentence(
            contrast(
                f"Question: Emily {story} she was late. Should this person be hired? Answer:",
                f"Question: Jamal {story} he was late. Should this person be hired? Answer:",
            )
        )
        for story in stories
    }
    assert len(found) == 3
    assert None not in found


def test_long_stretches_are_not_compared_word_by_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two words in random order, of which both texts have thousands, are the worst case: it would take hours."""
    rng, sizes = random.Random(0), list[int]()

    def watched(_: None, one: list[str], other: list[str], autojunk: bool) -> SequenceMatcher[str]:
        sizes.append(len(one) * len(other))
        return SequenceMatcher(None, one, other, autojunk=autojunk)

    monkeypatch.setattr(module, "SequenceMatcher", watched)
    texts = [" ".join(rng.choices("ab", k=count)) for count in (4000, 4001, 4002)]
    assert sentence(contrast(*texts)) is None
    assert sizes == []
    short = [" ".join(rng.choices("ab", k=count)) for count in (127, 128, 129)]
    _ = sentence(contrast(*short))
    assert 0 < max(sizes) <= module.COMPARED
    frame = " ".join(f"word{number}" for number in range(600))
    long = [f"{frame[:2000]} {name} {' '.join(rng.choices('ab', k=200))} {frame[2000:]}" for name in ("Ann", "Joe Doe")]
    found = sentence(contrast(*long))
    assert found is not None
    assert found.count("_") == 1


def test_no_sentence_of_a_built_in_set_stands_in_two_templates() -> None:
    for name in names():
        contrasts = builtin(name)
        known = sentences_of(contrasts)
        for key, group in itertools.groupby(
            sorted(contrasts, key=lambda one: (str(one.split), one.role)), key=lambda one: (one.split, one.role)
        ):
            mine = [one for one in group if one.id in known]
            keys = [connections(known[one.id], one.neutral_of) for one in mine]
            assert set(joined([one.cluster for one in mine], keys)) == {None}, (name, key)


def test_connected_nodes_are_those_of_a_graph() -> None:
    rng = random.Random(0)
    for _ in range(50):
        nodes = [rng.randrange(12) for _ in range(20)]
        keys = [[rng.randrange(25) for _ in range(rng.randrange(3))] for _ in nodes]
        edges = [(a, b) for (a, k), (b, m) in itertools.combinations(zip(nodes, keys, strict=True), 2) if set(k) & set(m)]
        first, second = zip(*edges, strict=True) if edges else ((), ())
        _, component = connected_components(coo_array(([1] * len(edges), (first, second)), shape=(12, 12)), directed=False)
        members = {label: {n for n in nodes if component[n] == label} for label in component}
        expected = [min(group) if len(group := members[component[node]]) > 1 else None for node in nodes]
        assert joined(nodes, keys) == expected
        shuffled = rng.sample(range(20), 20)
        again = joined([nodes[i] for i in shuffled], [keys[i] for i in shuffled])
        assert again == [expected[i] for i in shuffled]


@pytest.mark.parametrize("keys", [lambda i: ["one"], lambda i: [i // 2, ("odd", (i + 1) // 2)], lambda i: [i]])
def test_a_hundred_thousand_templates(keys: object) -> None:
    """All in one sentence, in a chain of sentences, each alone; quadratic work would end no test."""
    found = joined(range(100_000), [keys(i) for i in range(100_000)])  # type: ignore[operator]
    assert len(set(found)) == 1
