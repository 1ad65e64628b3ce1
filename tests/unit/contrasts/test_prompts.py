"""The prompt set of a run: read and aligned when asked for, and sets that judge apart from what chooses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fairprune_framework.contrasts.alignment import align_all
from fairprune_framework.contrasts.prompts import PromptSet
from fairprune_framework.errors import PromptError, UserError
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.testing.tiny import tiny_contrasts, tiny_tokenizer

ENCODER = Encoder(tiny_tokenizer())


def encoder() -> Encoder:
    return ENCODER


def never() -> Encoder:
    raise AssertionError("no tokens were asked for")


def test_contrasts_need_no_tokenizer() -> None:
    found = PromptSet(tiny_contrasts(), never)
    assert list(found.contrasts) == tiny_contrasts()
    assert list(found.texts) == [contrast.id for contrast in tiny_contrasts()]
    assert found.values == {"race": 6, "age": 4, "stature": 3}


def test_tokens_are_those_of_the_alignment() -> None:
    found = PromptSet(tiny_contrasts(), encoder)
    assert list(found.aligned) == align_all(tiny_contrasts(), ENCODER)[0]
    assert found.categories == ["age", "race"]  # controls feed no score
    assert found.alignment.contrasts == 12


def test_no_source() -> None:
    with pytest.raises(UserError, match="no prompt set is named"):
        _ = PromptSet(None, never).contrasts


def test_a_split_is_drawn_by_the_seed() -> None:
    def splits(seed: int) -> list[str | None]:
        return [contrast.split for contrast in PromptSet(tiny_contrasts(), never, split="template:0.5", seed=seed).contrasts]

    assert splits(1) == splits(1)
    assert len({tuple(splits(seed)) for seed in range(5)}) > 1


def test_what_cannot_be_used_is_skipped_if_asked_for() -> None:
    short = Encoder(tiny_tokenizer(), limit=8)
    found = PromptSet(tiny_contrasts(), lambda: short, bad="skip")
    fits = [c.id for c in tiny_contrasts() if all(len(ENCODER.ids(v.text)) <= 8 for v in c.variants)]
    assert [contrast.id for contrast in found.aligned] == fits
    assert 0 < len(fits) < 12
    assert len(found.alignment.skipped) == 12 - len(fits)
    with pytest.raises(PromptError, match="the model's context holds 8"):
        _ = PromptSet(tiny_contrasts(), lambda: short).aligned


def test_the_set_as_it_lies_in_a_folder_needs_its_source_no_more(tmp_path: Path) -> None:
    source = tmp_path / "x.jsonl"
    lines = "".join(json.dumps(contrast.to_json()) + "\n" for contrast in tiny_contrasts())
    source.write_text(lines)
    found = PromptSet(source, encoder)
    counted = found.alignment
    (tmp_path / "stored.jsonl").write_text(lines)
    stored = found.stored_at(tmp_path / "stored.jsonl")
    source.unlink()
    assert list(stored.contrasts) == tiny_contrasts()
    assert stored.alignment == counted
    assert PromptSet(tmp_path / "stored.jsonl", encoder).alignment == counted


def rows(*texts: tuple[str, str], prefix: str = "j") -> list[dict[str, Any]]:
    return [
        {"id": f"{prefix}{i}", "category": "gender", "template_id": f"{prefix}{i}", "prompt_1": a, "prompt_2": b}
        for i, (a, b) in enumerate(texts)
    ]


def test_a_set_that_judges_shares_nothing_with_what_chooses(tmp_path: Path, write_prompts: Callable[..., Path]) -> None:
    apart = write_prompts(tmp_path / "apart.jsonl", rows(("The man came", "The woman came"), ("A man left", "A woman left")))
    shared = tiny_contrasts()[0].variants
    same = write_prompts(tmp_path / "same.jsonl", rows((shared[0].text, shared[1].text)))
    found = PromptSet(tiny_contrasts(), encoder, judging={"other": str(apart)}).judged(choosing=True)
    assert set(found) == {"other"}
    assert [contrast.id for contrast in found["other"].aligned] == ["j0", "j1"]
    assert len(found["other"].contrasts) == 2
    with pytest.raises(PromptError, match="same"):
        PromptSet(tiny_contrasts(), encoder, judging={"same": str(same)}).judged(choosing=True)
    judged = PromptSet(tiny_contrasts(), encoder, judging={"same": str(same)}).judged(choosing=False)
    assert len(judged["same"].aligned) == 1


def test_legitimate_differences_stand_apart() -> None:
    words = {"man": ["his"], "woman": ["her"]}
    variants = [{"attribute": name, "text": f"The {name} lost", "right": right} for name, right in words.items()]
    given = [contrast.to_json() for contrast in tiny_contrasts()]
    legitimate = {"id": "lost", "category": "legit-pronoun", "split": "select", "variants": variants}
    found = PromptSet([*given, legitimate], encoder)
    assert list(found.aligned) == list(PromptSet(given, encoder).aligned)
    assert [one.id for one in found.legitimate] == ["lost"]
    assert found.alignment.contrasts == 13
    feeds, before = dict(found.alignment.feeds), dict(PromptSet(given, encoder).alignment.feeds)
    assert (feeds.pop("legitimate").contrasts, before.pop("legitimate").contrasts) == (1, 0)
    assert feeds == before
    assert "legit-pronoun" not in found.categories
