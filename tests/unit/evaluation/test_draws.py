"""What items are drawn with: decided by the items of one interval, and by no others."""

from __future__ import annotations

from typing import Any

from fairprune_framework.evaluation.draws import across_roles, draws, together


def item(category: str, template: str, sentence: str | None = None, neutral_of: str | None = None) -> dict[str, Any]:
    return {"category": category, "template_id": template, "sentence": sentence, "neutral_of": neutral_of}


def test_templates_of_one_sentence_are_drawn_together_whatever_their_category() -> None:
    items = [item("age", "1", "x"), item("age", "2", "x"), item("race", "1", "x"), item("race", "2", "y"), item("age", "3")]
    one = "one sentence: age/1"
    assert together(items) == [one, one, one, None, None]
    assert draws(items) == [one, one, one, "race/2", "age/3"]


def test_what_only_others_connect_is_apart() -> None:
    """A template of another category that stands in all sentences connects them where it takes part, and only there."""
    ages = [item("age", str(number), f"s{number}") for number in range(5)]
    everywhere = [item("race", "all", f"s{number}") for number in range(5)]
    assert set(together([*ages, *everywhere])) == {"one sentence: age/0"}
    assert together(ages) == [None] * 5


def test_controls_of_several_sets_in_one_template_are_drawn_together() -> None:
    controls = [item(kind, f"{kind}-{t}", f"{kind} {t}", f"age/{t}") for kind in ("coat", "hand") for t in (1, 2)]
    assert together(controls) == [f"one sentence: coat/coat-{t}" for _ in range(2) for t in (1, 2)]


def test_across_roles_sentences_connect_the_templates_that_controls_name() -> None:
    items = [
        item("age", "1", "x"),
        item("race", "1", "x"),
        item("age", "2", "y"),
        item("coat", "a", "x", "age/1"),
        item("coat", "b", "z", "age/2"),
        item("hand", "c", "y"),  # stands in the sentence of age/2, and does not say so
        item("hand", "d", "w"),
    ]
    one, two = "one sentence: age/1", "one sentence: age/2"
    assert across_roles(items) == [one, one, two, one, two, two, None]


def test_items_of_older_runs_have_no_sentence() -> None:
    items = [{"category": "age", "template_id": str(number)} for number in range(3)]
    assert together(items) == across_roles(items) == [None] * 3
    assert draws(items) == ["age/0", "age/1", "age/2"]
