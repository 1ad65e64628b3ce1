"""Which contrasts select and which judge."""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairprune_framework.contrasts.schema import Contrast, Variant
from fairprune_framework.contrasts.splits import (
    apply_split,
    assign,
    refuse_roles,
    refuse_shared_templates,
    shared_control_words,
    split_hash,
    without_overlap,
)
from fairprune_framework.errors import PromptError, UserError


def contrast(
    number: int, template: str | None = None, category: str = "g", split: str | None = None, text: str = ""
) -> Contrast:
    name = text or f"{category} {template} {number}"
    return Contrast(
        id=f"{category}-{number}",
        category=category,
        template_id=template or f"row-{number}",
        variants=(Variant(attribute="x", text=f"{name} x"), Variant(attribute="y", text=f"{name} y")),
        split=split,
    )


def sides(contrasts: list[Contrast]) -> list[str | None]:
    return [made.split for made in contrasts]


GRID = [contrast(10 * t + v, f"T{t}", category) for category in ("age", "gender") for t in range(1, 6) for v in range(3)]


def test_keep_leaves_splits_as_they_are() -> None:
    bare = [contrast(1), contrast(2)]
    assert apply_split(bare, "keep", 0) == bare
    named = [contrast(1, split="select"), contrast(2, split="heldout")]
    assert apply_split(named, "keep", 0) == named


def test_keep_refuses_a_set_that_is_split_in_part() -> None:
    with pytest.raises(PromptError, match="1 of 2 contrasts have a split, 'g-2' has none"):
        apply_split([contrast(1, split="select"), contrast(2)], "keep", 0)


def test_odd_rows_select_counted_from_one() -> None:
    assert sides(apply_split([contrast(n) for n in range(5)], "row:odd-even", 0)) == ["select", "heldout"] * 2 + ["select"]


def test_named_templates_select() -> None:
    split = apply_split(GRID, "templates:T1, T3", 0)
    assert {made.template_id for made in split if made.split == "select"} == {"T1", "T3"}
    assert {made.template_id for made in split if made.split == "heldout"} == {"T2", "T4", "T5"}


def test_other_rules_replace_what_the_set_says() -> None:
    named = [contrast(1, split="heldout"), contrast(2, split="select")]
    assert sides(apply_split(named, "row:odd-even", 0)) == ["select", "heldout"]


@pytest.mark.parametrize(("share", "expected"), [("0.5", 3), ("0.3", 2), ("0.29", 1), ("0.1", 1), ("0.9", 5), ("1e-1", 1)])
def test_the_share_of_each_category_is_rounded_halves_up(share: str, expected: int) -> None:
    split = apply_split(GRID, f"template:{share}", 7)
    for category in ("age", "gender"):
        assert len({made.template_id for made in split if made.split == "select" and made.category == category}) == expected


def test_the_draw_is_the_lowest_hashes_of_seed_category_and_template() -> None:
    split = apply_split(GRID, "template:0.5", 11)
    for category in ("age", "gender"):
        draw = sorted(
            (f"T{t}" for t in range(1, 6)), key=lambda t: hashlib.sha256(f'[11, "{category}", "{t}"]'.encode()).hexdigest()
        )
        assert {made.template_id for made in split if made.split == "select" and made.category == category} == set(draw[:3])


def test_seeds_draw_differently_and_categories_apart() -> None:
    picks = {
        frozenset(made.cluster for made in apply_split(GRID, "template:0.5", seed) if made.split == "select")
        for seed in range(20)
    }
    assert len(picks) > 10
    per_category = [{t for c, t in pick if c == "age"} == {t for c, t in pick if c == "gender"} for pick in picks]
    assert not all(per_category)


@given(
    clusters=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 12)), min_size=1, max_size=40),
    percent=st.integers(1, 99),
    seed=st.integers(0, 2**63),
    shuffle=st.randoms(use_true_random=False),
)
def test_template_draw_properties(clusters: list[tuple[str, int]], percent: int, seed: int, shuffle: random.Random) -> None:
    rows = [contrast(n, f"T{t}", category) for n, (category, t) in enumerate(clusters)]
    counts = {c: len({t for d, t in clusters if d == c}) for c, _ in clusters}
    expected = {c: (percent * n + 50) // 100 for c, n in counts.items()}
    rule = f"template:{percent / 100}"
    if not any(expected.values()):
        with pytest.raises(UserError, match="leaves nothing to select"):
            apply_split(rows, rule, seed)
        return
    split = apply_split(rows, rule, seed)
    assert [made.id for made in split] == [row.id for row in rows]
    chosen = {made.cluster for made in split if made.split == "select"}
    assert {c: sum(d == c for d, _ in chosen) for c in counts} == expected
    moved = list(rows)
    shuffle.shuffle(moved)
    assert {made.id: made.split for made in apply_split(moved, rule, seed)} == {made.id: made.split for made in split}
    assert split_hash(apply_split(moved, rule, seed)) == split_hash(split)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("halves", "The split must be keep, template:0.5, row:odd-even or templates:T1,T2,T3. Got 'halves' instead"),
        ("", "Got '' instead"),
        ("kepe", "Did you mean 'keep'"),
        ("row:even-odd", "Did you mean 'row:odd-even'"),
        ("template:", "The split must be"),
        ("templates:", "The split must be"),
        ("template:half", "must be a number in (0, 1). Got 'template:half'"),
        ("template:0", "must be in (0, 1). Got 0 instead"),
        ("template:1", "must be in (0, 1). Got 1 instead"),
        ("template:nan", "must be in (0, 1). Got nan instead"),
        ("template:20", "must be in (0, 1). Got 20 instead"),
        ("templates:T1,T9", "names the template 'T9', which the set does not have: T1, T2, T3, T4, T5"),
        ("templates:,", "leaves nothing to select"),
        ("template:0.05", "leaves nothing to select from: all 30 contrasts are heldout"),
    ],
)
def test_bad_rules(rule: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        apply_split(GRID, rule, 0)
    assert message in str(caught.value)


def test_a_template_on_both_sides() -> None:
    rows = [contrast(1, "T1"), contrast(2, "T1")]
    with pytest.raises(
        PromptError, match=r"template 'T1' of category 'g' lies on both sides.*'g-1' is select, 'g-2' is heldout"
    ):
        apply_split(rows, "row:odd-even", 0)
    named = [contrast(1, "T1", split="heldout"), contrast(2, "T1", split="select")]
    with pytest.raises(PromptError, match="both sides of the split 'keep'"):
        apply_split(named, "keep", 0)
    with pytest.raises(PromptError, match="lies on both sides"):
        without_overlap(named)


def test_one_template_id_in_two_categories_is_two_templates() -> None:
    rows = [contrast(1, "T1", "a"), contrast(2, "T1", "b")]
    assert sides(apply_split(rows, "row:odd-even", 0)) == ["select", "heldout"]


def test_a_text_on_both_sides_is_refused_or_taken_out_of_select() -> None:
    rows = [contrast(1, text="same"), contrast(2, text="same"), contrast(3), contrast(4)]
    with pytest.raises(PromptError, match=r"'g-1' \(select\) and in 'g-2' \(heldout\): 'same x'; 1 contrast"):
        apply_split(rows, "row:odd-even", 0)
    kept, skipped = without_overlap(assign(rows, "row:odd-even", 0))
    assert [(made.id, made.split) for made in kept] == [("g-2", "heldout"), ("g-3", "select"), ("g-4", "heldout")]
    assert skipped == [("g-1", "a text of it occurs in 'g-2', which is heldout")]
    assert apply_split(kept, "keep", 0) == kept


def test_a_text_twice_on_one_side_is_allowed() -> None:
    rows = [contrast(1, text="same"), contrast(2), contrast(3, text="same")]
    assert sides(apply_split(rows, "row:odd-even", 0)) == ["select", "heldout", "select"]


def test_split_hash_sees_ids_and_splits_only() -> None:
    rows = [contrast(1, split="select"), contrast(2, split="heldout")]
    each = [hashlib.sha256(pair).hexdigest() for pair in (b'["g-1","select"]', b'["g-2","heldout"]')]
    expected = f"{sum(int(one, 16) for one in each) % 2**256:064x}"
    assert split_hash(rows) == split_hash(rows[::-1]) == expected
    assert split_hash([contrast(1, split="select"), contrast(2, split="select")]) != expected
    assert split_hash([contrast(1, text="other", split="select"), contrast(2, split="heldout")]) == expected


# roles


def control(identity: str, split: str, words: tuple[str, ...] = ("left", "right"), of: str | None = None) -> Contrast:
    variants = tuple(Variant(attribute=word, text=f"{identity} {word}") for word in words)
    return Contrast(
        id=identity, category="hand", template_id=identity, variants=variants, control=True, split=split, neutral_of=of
    )


CHOOSES, JUDGES = contrast(1, "T1", split="select"), contrast(2, "T2", split="heldout")


def test_held_out_templates_may_return_with_other_words() -> None:
    again = contrast(3, "T2", split="heldout-words")
    refuse_shared_templates([CHOOSES, JUDGES, again], "keep")
    with pytest.raises(PromptError, match="'T1' of category 'g' lies on both sides"):
        refuse_shared_templates([CHOOSES, contrast(3, "T1", split="heldout-words")], "keep")
    repeated = [CHOOSES, contrast(9, "T9", split="heldout-words", text="g T1 1")]
    assert without_overlap(repeated) == (repeated[1:], [("g-1", "a text of it occurs in 'g-9', which is heldout")])


def test_a_crossed_control_goes_where_its_template_goes() -> None:
    crossed = [control(f"x{t}", "select", of=f"g/T{t}") for t in range(1, 7)]
    originals = [contrast(t, f"T{t}") for t in range(1, 7)]
    for rule in ("template:0.5", "templates:T2,T3"):
        found = apply_split([*originals, *crossed], rule, 3)
        assert sides(found[:6]) == sides(found[6:])
        assert len(set(sides(found[:6]))) == 2


def test_roles_that_fit() -> None:
    refuse_roles([CHOOSES, JUDGES, control("a", "select", of="g/T1"), control("b", "heldout", ("up", "down"), of="g/T2")])
    shared = [control("a", "select"), control("b", "heldout", ("right", "up"))]
    refuse_roles([CHOOSES, JUDGES, *shared])  # controls that feed no score
    assert shared_control_words(shared) == [("right", "a", "b")]


def legitimate(category: str) -> Contrast:
    variants = tuple(Variant(attribute=word, text=f"The {word} and", right=(word,)) for word in ("x", "y"))
    return Contrast(
        id=f"{category}-legit", category=category, template_id="L", variants=variants, legitimate=True, split="select"
    )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([control("a", "select", of="g/T3")], "'a' is neutral of 'g/T3', which is no demographic template of the set"),
        ([control("a", "select", of="g/T2")], "'a' is select, the template 'g/T2' that it fills is heldout"),
        (
            [control("a", "select", of="g/T1"), control("b", "heldout", ("up", "left"))],
            "the control word 'left' stands in 'a' (select) and in 'b' (heldout)",
        ),
        (
            [control("a", "select", of="g/T1"), replace(control("b", "select"), template_id="a")],
            "controls 'a' and 'b' are of one template, 'a' of 'hand', and neutral of 'g/T1' and of 'none'",
        ),
        ([legitimate("g")], "category 'g' is legitimate by 'g-legit', but contrast 'g-1' has no right next words"),
    ],
)
def test_roles_that_do_not(more: list[Contrast], message: str) -> None:
    with pytest.raises(PromptError) as error:
        refuse_roles([CHOOSES, JUDGES, *more])
    assert message in str(error.value)
