"""A set that is read again and again says what the same set in memory says; and the values beyond the sixteenth are `other`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fairprune_framework.contrasts import readers, sets
from fairprune_framework.contrasts.alignment import VALUES, align_all, aligned
from fairprune_framework.contrasts.schema import Contrast, Variant
from fairprune_framework.contrasts.sets import ContrastSet, check_alignment
from fairprune_framework.errors import PromptError
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.testing.tiny import tiny_contrasts, tiny_tokenizer


def rows(count: int, **more: Any) -> list[dict[str, Any]]:
    return [
        {
            "id": f"c{i}",
            "category": f"k{i % 3}",
            "template_id": f"t{i % 50}",
            "prompt_1": f"A nurse {i} .",
            "prompt_2": f"A man {i} .",
        }
        | more
        for i in range(count)
    ]


def write(path: Path, content: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets of more than ten contrasts are large."""
    monkeypatch.setattr(readers, "HELD", 10)
    monkeypatch.setattr(sets, "COUNTED", 2)


@pytest.mark.parametrize("rule", ["keep", "template:0.5", "row:odd-even", "templates:t1,t2"])
def test_streamed_as_held(rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.jsonl", rows(300 if rule != "row:odd-even" else 50))
    held = ContrastSet(path, split=rule, seed=3)
    monkeypatch.setattr(readers, "HELD", 10)
    monkeypatch.setattr(sets, "COUNTED", 100)
    streamed = ContrastSet(path, split=rule, seed=3)
    assert list(held) == list(streamed) == list(streamed)
    assert (held.sha256, held.vocabularies, len(held)) == (streamed.sha256, streamed.vocabularies, len(streamed))


@pytest.mark.usefixtures("small")
def test_what_is_wrong_in_a_large_set_is_named(tmp_path: Path) -> None:
    twice = rows(40)
    twice[30]["id"] = "c7"
    with pytest.raises(PromptError, match=r"line 31: the id 'c7' is taken already by .*line 8"):
        ContrastSet(write(tmp_path / "twice.jsonl", twice))
    found = ContrastSet(tmp_path / "twice.jsonl", bad="skip")
    assert [where.rpartition("line ")[2] for where, _ in found.skipped] == ["31"]
    assert len(list(found)) == len(found) == 39
    both = rows(40)
    both[33] |= {"prompt_2": both[2]["prompt_1"]}
    with pytest.raises(PromptError, match=r"'A nurse 2 \.'; 1 contrast"):
        ContrastSet(write(tmp_path / "both.jsonl", [r | {"template_id": r["id"]} for r in both]), split="row:odd-even")
    with pytest.raises(PromptError, match="lies on both sides"):
        ContrastSet(write(tmp_path / "template.jsonl", [r | {"template_id": "t"} for r in rows(40)]), split="row:odd-even")


@pytest.mark.usefixtures("small")
def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", rows(40))
    found = ContrastSet(path)
    write(path, rows(41))
    with pytest.raises(PromptError, match="was changed while it was being read"):
        list(found)


def test_the_rarest_values_are_other() -> None:
    contrasts = [
        Contrast(
            id=f"c{i}",
            category="k",
            template_id="t",
            variants=(Variant(attribute=f"v{i:02}", text=f"A {i}"), Variant(attribute="common", text=f"B {i}")),
        )
        for i in range(20)
    ]
    found = ContrastSet(
        [
            *contrasts,
            *(
                Contrast(
                    id=f"d{c.id}",
                    category="k",
                    template_id="t",
                    variants=(
                        Variant(attribute=c.variants[0].attribute, text=f"C {c.id}"),
                        Variant(attribute="common", text=f"D {c.id}"),
                    ),
                )
                for c in contrasts[-3:]
            ),
        ]
    )
    values = found.vocabularies["k"]
    assert len(values) == VALUES
    assert {"common", "v17", "v18", "v19", "v00"} <= set(values)
    assert found.others == {"k": 20 - (VALUES - 1)}
    assert found.summed == {"k"}
    assert found.values == {"k": VALUES + 1}
    aligned_ = list(aligned(found, Encoder(tiny_tokenizer()), found.vocabularies))
    assert max(max(c.attributes) for c in aligned_) == VALUES


def test_alignment_counts_what_is_there() -> None:
    found = ContrastSet(tiny_contrasts())
    encoder = Encoder(tiny_tokenizer())
    counts, (all_, _) = check_alignment(found, encoder), align_all(tiny_contrasts(), encoder)
    assert counts.contrasts == len(all_)
    assert counts.tokens == sum(len(tokens.ids) for c in all_ for tokens in c.variants)
    feeding = [c for c in all_ if c.split in (None, "select")]
    assert counts.feeds["contrasts"].contrasts == sum(not c.control for c in feeding)
    assert counts.feeds["controls"].contrasts == sum(c.control for c in feeding)
    assert counts.unequal == sum(not c.equal_length for c in all_)
