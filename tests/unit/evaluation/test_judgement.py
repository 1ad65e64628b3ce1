"""What the verdict is given, from the items of an evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fairprune_framework.evaluation.judgement import verdict_inputs
from fairprune_framework.evaluation.verdict import verdict_of
from fairprune_framework.functional.difference_in_differences import PairedValues, difference_in_differences

RNG = np.random.default_rng(0)


def item(i: int, role: str, category: str, template: str, before: float, after: float, **more: Any) -> dict[str, Any]:
    return {
        "id": f"{role}-{i}",
        "role": role,
        "control": role == "control",
        "category": category,
        "template_id": template,
        "neutral_of": None,
        "split": "heldout",
        "next-token-divergence_before": before,
        "next-token-divergence_after": after,
        **more,
    }


def world(demographic: float, control: float, margin: float, n: int = 60) -> list[dict[str, Any]]:
    """Templates whose divergence is multiplied by these; every control stands in a template of the demographic ones."""
    found = []
    for i in range(n):
        before = RNG.gamma(6, 0.01)
        noise = RNG.normal(1, 0.03, 3)
        found.append(item(i, "demographic", f"c{i % 3}", f"t{i}", before, before * demographic * noise[0]))
        where = f"c{i % 3}/t{i}"
        found.append(item(i, "control", f"n{i % 4}", f"k{i}", before / 2, before / 2 * control * noise[1], neutral_of=where))
        margins = {"legitimate-margin_before": 2.0, "legitimate-margin_after": 2.0 * margin * noise[2]}
        found.append(item(i, "legitimate", "legit-nation", f"l{i}", 0.5, 0.5, **margins))
    return found


def word(items: list[dict[str, Any]], random: tuple[float, ...] = (0.0,) * 19, **more: Any) -> str:
    given: dict[str, Any] = {
        "applied": True,
        "why_not": None,
        "guard": {"increase": 0.01, "bound_high": 0.02, "limit": 0.05, "held": True},
        "random_changes": random,
        "seed": 0,
    }
    return verdict_of(verdict_inputs(items, **{**given, **more})).word


def test_the_ratio_of_ratios_is_crossed_by_the_shared_template() -> None:
    items = world(0.6, 0.9, 1.0)
    inputs = verdict_inputs(items, applied=True, why_not=None, guard=None, random_changes=(), seed=3)
    own, controls = ([one for one in items if one["role"] == role] for role in ("demographic", "control"))

    def values(chosen: list[dict[str, Any]], templates: list[str]) -> PairedValues:
        return PairedValues(
            before=[one["next-token-divergence_before"] for one in chosen],
            after=[one["next-token-divergence_after"] for one in chosen],
            categories=[one["category"] for one in chosen],
            clusters=[one["template_id"] for one in chosen],
            templates=templates,
        )

    labels = [f"{one['category']}/{one['template_id']}" for one in own]
    expected = difference_in_differences(values(own, labels), values(controls, [one["neutral_of"] for one in controls]), seed=3)
    assert inputs.specificity == expected
    assert expected.crossed
    assert expected.shared == 60
    assert expected.ratio_of_ratios.ratio == pytest.approx(0.6 / 0.9, rel=0.05)


@pytest.mark.parametrize(
    ("demographic", "control", "margin", "expected"),
    [
        (0.6, 0.98, 0.99, "fairer"),
        (0.6, 0.62, 0.99, "blunter"),
        (0.6, 0.98, 0.7, "blunter"),
        (0.6, 0.98, -1.1, "blunter"),  # the wrong words are preferred as clearly as the right ones were
        (1.3, 1.0, 1.0, "worse"),
    ],
)
def test_words(demographic: float, control: float, margin: float, expected: str) -> None:
    assert word(world(demographic, control, margin)) == expected


def test_what_is_missing_is_never_fairer() -> None:
    items = world(0.6, 0.98, 0.99)
    assert word(items) == "fairer"
    assert word(items, random=(-0.9, *(0.0,) * 18)) == "less-divergent"
    assert word(items, random=()) == "less-divergent"
    assert word(items, guard=None) == "less-divergent"
    assert word([one for one in items if one["role"] != "legitimate"]) == "less-divergent"
    assert word([one for one in items if one["role"] != "control"]) == "less-divergent"
    assert word(items, guard={"increase": 0.01, "bound_high": 0.2, "limit": 0.05}) == "less-divergent"
    assert word(items, guard={"increase": None, "bound_high": None, "limit": 0.05}) == "worse"
    assert word(items, applied=False, why_not="the plan is empty") == "abstained"


def test_a_set_that_repeats_its_sentences_says_no_more_than_they_do() -> None:
    """Twelve templates copied ten times, each copy with a template id and categories of its own."""
    few = world(0.8, 0.98, 0.99, n=12)
    many = [
        one
        | {"id": f"{one['id']}-{copy}", "template_id": f"{one['template_id']}-{copy}", "category": f"{one['category']}-{copy}"}
        | {"neutral_of": None if one["neutral_of"] is None else one["neutral_of"].replace("/", f"-{copy}/") + f"-{copy}"}
        | {"sentence": one["neutral_of"] or f"{one['category']}/{one['template_id']}"}
        for one in few
        for copy in range(10)
    ]  # a sentence is named so that it is drawn as its template was
    given: dict[str, Any] = {"applied": True, "why_not": None, "guard": None, "random_changes": (), "seed": 0}
    once, often = verdict_inputs(few, **given), verdict_inputs(many, **given)
    for name in ("divergence", "margin"):
        alone, repeated = getattr(once, name), getattr(often, name)
        assert (alone.clusters, repeated.clusters) == (12, 12)
        assert repeated.bound_high == pytest.approx(alone.bound_high)
        assert repeated.bound_low == pytest.approx(alone.bound_low)
    assert once.specificity is not None
    assert often.specificity is not None
    for name in ("demographic", "controls"):
        assert getattr(often.specificity, name).units == 12
        assert getattr(often.specificity, name).effective == pytest.approx(getattr(once.specificity, name).effective)
    assert often.specificity.ratio_of_ratios.bound_high == pytest.approx(once.specificity.ratio_of_ratios.bound_high)
    unsaid = verdict_inputs([{**one, "sentence": None} for one in many], **given)
    assert unsaid.divergence is not None
    assert unsaid.divergence.clusters == 120


def test_held_out_controls_alone_judge_nothing() -> None:
    items = [one for one in world(0.6, 0.98, 0.99) if one["role"] != "demographic"]
    inputs = verdict_inputs(items, applied=True, why_not=None, guard=None, random_changes=(), seed=0)
    assert verdict_of(inputs).because == "no demographic contrast is held out: see --split"


def test_other_splits_have_no_say() -> None:
    items = world(0.6, 0.98, 0.99)
    elsewhere = [{**one, "split": "heldout-words"} for one in world(1.5, 0.5, 0.2)]
    assert word([*items, *elsewhere]) == "fairer"
