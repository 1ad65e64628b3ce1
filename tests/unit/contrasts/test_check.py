"""The report on a prompt set against counts made by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fairprune_framework.contrasts.check import check_prompts, notes, render
from fairprune_framework.contrasts.schema import Contrast, Variant
from fairprune_framework.errors import PromptError
from fairprune_framework.testing.tiny import tiny_contrasts, tiny_tokenizer


def test_counts_of_the_tiny_set(llama: Path, prompts: Path) -> None:
    found = check_prompts(str(prompts), str(llama))
    tokenizer, contrasts = tiny_tokenizer(), tiny_contrasts()
    texts = [variant.text for contrast in contrasts for variant in contrast.variants]
    lengths = [len(tokenizer(text)["input_ids"]) for text in texts]
    assert (found["contrasts"], found["texts"], found["distinct_texts"]) == (12, len(texts), len(set(texts)))
    assert (found["tokens"], found["longest"], found["context"]) == (sum(lengths), max(lengths), 512)
    equal = [len({len(tokenizer(v.text)["input_ids"]) for v in contrast.variants}) == 1 for contrast in contrasts]
    assert found["equal_length"] == sum(equal)
    assert found["without_suffix"] == 1  # "They are ..."
    rows = {row["category"]: row for row in found["categories"]}
    assert {name: (row["contrasts"], row["role"]) for name, row in rows.items()} == {
        "race": (6, "demographic"),
        "age": (4, "demographic"),
        "stature": (2, "control"),
    }
    assert rows["age"]["splits"] == {"select": 2, "heldout": 2}
    assert rows["stature"]["attributes"] == ["left handed", "short", "tall"]
    assert sum(row["equal_length"] for row in rows.values()) == found["equal_length"]


def test_what_is_skipped_is_named(llama: Path, tmp_path: Path, write_prompts: Callable[..., Path]) -> None:
    good = {"id": "a", "prompt_1": "An old man", "prompt_2": "A young man"}
    bad = {"id": "b", "prompt_1": "An old man"}
    long = {"id": "c", "prompt_1": "old " * 600, "prompt_2": "young " * 600}
    path = write_prompts(tmp_path / "x.jsonl", [good, bad, long])
    with pytest.raises(PromptError, match="line 2"):
        check_prompts(str(path), str(llama))
    found = check_prompts(str(path), str(llama), bad="skip")
    assert found["contrasts"] == 2
    assert [item["where"].rpartition(" ")[2] for item in found["skipped"]] == ["2", "c"]
    assert "the model's context holds 512" in found["skipped"][1]["reason"]
    text = render(found)
    assert "skipped c: contrast 'c' has" in text
    assert "2 contrasts, 4 texts (4 distinct)" in text


def test_all_values_of_a_contrast_are_counted(llama: Path, tmp_path: Path, write_prompts: Callable[..., Path]) -> None:
    """Statistics tell 16 values of a category apart; what a set holds is another question."""
    people = [f"man {number}" for number in range(135)]
    rows = [
        {
            "id": f"q{question}",
            "category": "people",
            "variants": [{"attribute": who, "text": f"The {who} walked to office {question}"} for who in people],
        }
        for question in range(2)
    ]
    found = check_prompts(str(write_prompts(tmp_path / "x.jsonl", rows)), str(llama))
    (row,) = found["categories"]
    assert row["attributes"] == sorted(people)
    assert (found["contrasts"], found["texts"], found["distinct_texts"]) == (2, 270, 270)
    (line,) = [line for line in render(found).splitlines() if line.startswith("  people")]
    assert line.split()[1:4] == ["2", "2", "135"]  # contrasts, templates, values


def test_the_table_is_at_most_100_columns_wide(llama: Path, prompts: Path) -> None:
    report = check_prompts(str(prompts), str(llama))
    lines = render({**report, "set": "x", "model": "m"}).splitlines()
    assert max(map(len, lines)) <= 100
    assert [line.split()[0] for line in lines[5:10]] == ["demographic:", "age", "race", "control:", "stature"]
    assert lines[6].split()[1:4] == ["4", "4", "4"]  # contrasts, templates, values
    assert lines[5] == "demographic: 10 of 10 templates; heldout:5 select:5"


def contrast(number: int, category: str, split: str | None = "heldout", **more: Any) -> Contrast:
    words = more.pop("words", ("x", "y"))
    right = more.pop("right", ((),) * len(words))
    variants = tuple(
        Variant(attribute=w, text=f"{category} {number} {w} is", right=r) for w, r in zip(words, right, strict=True)
    )
    return Contrast(
        id=f"{category}-{number}", category=category, template_id=str(number), variants=variants, split=split, **more
    )


def test_what_a_verdict_will_lack() -> None:
    judging = [contrast(number, "age") for number in range(4)]
    controls = [contrast(number, "hand", control=True) for number in range(8)]
    assert notes([*judging, *controls]) == []
    assert "7 control templates judge; with fewer than 8 nobody can tell" in notes([*judging, *controls[:7]])[0]
    (uneven,) = notes([*judging, contrast(0, "race"), *controls])
    assert uneven.startswith("unequal categories in heldout: race has 1 template(s), age 4;")
    (shared,) = notes([*judging, *controls, contrast(9, "coat", "select", control=True, words=("y", "z"))])
    assert shared.startswith("control words on both sides of the split: y;")
    assert notes([contrast(number, "age", None) for number in range(4)]) == []  # nothing judges


def test_one_sentence_in_several_templates_is_named() -> None:
    def filled(category: str, template: str, *words: str) -> Contrast:
        variants = tuple(Variant(attribute=word, text=f"The {word} nurse said that") for word in words)
        return Contrast(id=template, category=category, template_id=template, variants=variants, split="heldout")

    controls = [contrast(number, "hand", control=True) for number in range(8)]
    rows = [filled("age", "1", "old", "young"), filled("age", "2", "old", "aged"), filled("race", "3", "Black", "white")]
    (note,) = notes([*rows[:2], *controls])
    assert note.startswith(
        "2 demographic templates that judge stand in 1 sentence(s), such as 'the _ nurse said that': what stands"
    )
    assert "3 demographic templates that judge stand in 1 sentence(s)" in " ".join(notes([*rows, *controls]))
    one = [replace(row, template_id="nurse") for row in rows[:2]]
    assert notes([*one, *controls]) == []


def test_sentences_of_controls_and_on_both_sides_are_named() -> None:
    def filled(
        number: int, text: str, role: str, split: str = "heldout", words: tuple[str, str] = ("old", "young")
    ) -> Contrast:
        right = (("slow",), ("fast",)) if role == "legitimate" else ((), ())
        variants = tuple(
            Variant(attribute=word, text=text.format(word), right=each) for word, each in zip(words, right, strict=True)
        )
        return Contrast(
            id=f"{role}-{number}-{split}",
            category=role,
            template_id=f"{number}-{split}",
            variants=variants,
            split=split,  # type: ignore[arg-type]
            control=role == "control",
            legitimate=role == "legitimate",
        )

    judging = [filled(number, f"The {{}} nurse of house {number} said that", "demographic") for number in range(4)]
    controls = [
        filled(number, "The {} guest came in and said that", "control", words=("tall", f"short{number}")) for number in range(9)
    ]
    told = notes([*judging, *controls])
    assert told[0].startswith("1 control templates judge; with fewer than 8")
    assert told[1].startswith("9 control templates that judge stand in 1 sentence(s)")
    legitimate = [
        filled(number, "The {} nurse is rather", "legitimate", words=("old", f"young{number}")) for number in range(3)
    ]
    assert any(text.startswith("3 legitimate templates that judge") for text in notes([*judging, *legitimate]))
    chosen = filled(9, "The {} nurse of house 2 said that", "demographic", "select", ("aged", "youthful"))
    (both,) = [text for text in notes([*judging, chosen]) if "both choose and judge" in text]
    assert both.startswith(
        "1 sentence(s) both choose and judge, with other words for the attribute, such as 'the _ nurse of house 2"
    )


def test_right_words_of_several_tokens_are_named(llama: Path, tmp_path: Path, write_prompts: Callable[..., Path]) -> None:
    given = [contrast(number, "age", "select") for number in range(2)]
    legitimate = contrast(1, "legit", "select", legitimate=True, words=("man", "woman"), right=(("doctor",), ("zzq",)))
    path = write_prompts(tmp_path / "x.jsonl", [one.to_json() for one in (*given, legitimate)])
    found = check_prompts(str(path), str(llama))
    assert [(role["role"], role["contrasts"]) for role in found["roles"]] == [("demographic", 2), ("legitimate", 1)]
    assert found["notes"] == ["1 right next word(s) have several tokens, of which the first is scored: zzq"]
    assert "note: 1 right next word(s)" in render(found)
