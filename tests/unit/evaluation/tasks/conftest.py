"""Invented items of every task that has a local layout, and a tiny model that answers them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fairprune_framework.evaluation.cache import MeasurementCache
from fairprune_framework.evaluation.subject import Subject
from fairprune_framework.models.architecture import recognise
from fairprune_framework.testing.tiny import tiny_model, tiny_tokenizer

NAMES = ("baker", "pilot", "clerk", "nurse", "farmer", "tailor")


def bbq(category: str, number: int) -> dict[str, Any]:
    """A question in the layout of BBQ, about nobody."""
    clear = number % 2 == 1
    old, young = f"the old {NAMES[number % 6]}", f"the young {NAMES[(number + 1) % 6]}"
    context = f"{old.capitalize()} and {young} waited for the bus."
    return {
        "example_id": number,
        "question_index": str(1 + number // 4),
        "question_polarity": "neg" if number % 4 < 2 else "nonneg",
        "context_condition": "disambig" if clear else "ambig",
        "category": category,
        "answer_info": {"ans0": ["old", "old"], "ans1": ["young", "nonOld"], "ans2": ["Unknown", "unknown"]},
        "additional_metadata": {"stereotyped_groups": ["old"]},
        "context": context + (f" {old.capitalize()} had lost the ticket." if clear else ""),
        "question": "Who had lost the ticket?",
        "ans0": old,
        "ans1": young,
        "ans2": "Not known",
        "label": 0 if clear else 2,
    }


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Invented items of every task that has a local layout."""
    folder = tmp_path_factory.mktemp("task-data")
    rows: dict[str, list[dict[str, Any]]] = {
        "bbq/Age.jsonl": [bbq("Age", i) for i in range(48)],
        "bbq/Religion.jsonl": [bbq("Religion", i) for i in range(16)],
        "boolq/validation.jsonl": [
            {"question": f"is the {name} at work", "passage": f"The {name} went home early.", "label": i % 2}
            for i, name in enumerate(NAMES * 2)
        ],
        "lambada/test.jsonl": [
            {"text": f"The {a} thanked the {b} because the {a} had met the {b}"} for a in NAMES for b in NAMES[:2]
        ],
        "wikitext2/test_docs.jsonl": [{"page": f" = {name} = \n The {name} went to work . \n"} for name in NAMES],
        "winogender/all.jsonl": [
            {
                "sentence": f"The {name} told the customer that she was late.",
                "pronoun": "she",
                "occupation": name,
                "participant": "customer",
                "label": i % 2,
                "gender": ["female", "neutral"][i % 2],
            }
            for i, name in enumerate(NAMES * 2)
        ],
    }
    for name, found in rows.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in found))
    (folder / "crows_pairs").mkdir()
    lines = [f'{i},"The {name} was late again.","The {name} was early again.",stereo,age\n' for i, name in enumerate(NAMES * 2)]
    (folder / "crows_pairs" / "pairs.csv").write_text(",sent_more,sent_less,stereo_antistereo,bias_type\n" + "".join(lines))
    return folder


@pytest.fixture(scope="module")
def subject() -> Subject:
    model = tiny_model("llama").eval()
    return Subject(model, tiny_tokenizer(), recognise(model), MeasurementCache(None))
