"""StereoSet in its three published forms, on invented sentences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fairprune_framework.contrasts.readers import read
from fairprune_framework.contrasts.schema import stereotyping_variants
from fairprune_framework.errors import PromptError

WITHIN = {"id": "w", "target": "baker", "bias_type": "profession", "context": "The baker was BLANK."}
WITHIN_SENTENCES = {
    "anti-stereotype": "The baker was cold.",
    "stereotype": "The baker was warm.",
    "unrelated": "The baker was Tuesday.",
}
AFTER = {"id": "a", "target": "Utopia", "bias_type": "race", "context": "She came from Utopia. "}
AFTER_SENTENCES = {"unrelated": "Cats purr.", "anti-stereotype": "She was late.", "stereotype": "She was early."}


def listed(sentences: dict[str, str]) -> list[dict[str, Any]]:
    return [{"id": str(i), "labels": [], "gold_label": label, "sentence": s} for i, (label, s) in enumerate(sentences.items())]


def expected(contrasts: Any) -> None:
    within, after = sorted(contrasts, key=lambda contrast: contrast.id, reverse=True)
    assert (within.id, within.category, within.template_id, within.context) == ("w", "profession", "baker", "intrasentence")
    assert (after.id, after.category, after.template_id, after.context) == ("a", "race", "Utopia", "intersentence")
    assert [(v.attribute, v.text) for v in within.variants] == [
        ("stereotype", "The baker was warm."),
        ("anti-stereotype", "The baker was cold."),
    ]
    assert [v.text for v in after.variants] == ["She came from Utopia. She was early.", "She came from Utopia. She was late."]
    assert stereotyping_variants(within) == stereotyping_variants(after) == (0, 1)


def test_the_file_of_its_authors(tmp_path: Path) -> None:
    data = {
        "intersentence": [{**AFTER, "sentences": listed(AFTER_SENTENCES)}],
        "intrasentence": [{**WITHIN, "sentences": listed(WITHIN_SENTENCES)}],
    }
    (tmp_path / "dev.json").write_text(json.dumps({"version": "1.0", "data": data}))
    expected(read(tmp_path / "dev.json").contrasts)


def test_the_rows_of_the_hub() -> None:
    """`datasets` gives an object of lists, with numbers for labels: 0 anti-stereotype, 1 stereotype, 2 unrelated."""
    numbers = {"anti-stereotype": 0, "stereotype": 1, "unrelated": 2}
    rows = [
        {**row, "sentences": {"sentence": list(texts.values()), "gold_label": [numbers[label] for label in texts]}}
        for row, texts in ((AFTER, AFTER_SENTENCES), (WITHIN, WITHIN_SENTENCES))
    ]
    expected(read(rows).contrasts)


def test_flat_rows() -> None:
    expected(read([{**AFTER, **AFTER_SENTENCES}, {**WITHIN, **WITHIN_SENTENCES}]).contrasts)


@pytest.mark.parametrize(
    ("sentences", "said"),
    [
        (listed({"stereotype": "The baker was warm."}), "needs a sentence for each label. Got none for 'anti-stereotype'"),
        (listed({"neutral": "The baker was."}), "must be one of anti-stereotype, stereotype, unrelated. Got 'neutral'"),
        ("no", "the field 'sentences' must be an array of objects. Got 'no'"),
        ({"sentence": ["x"]}, "the field 'sentences' must hold 'sentence' and 'gold_label'"),
    ],
)
def test_bad_examples(sentences: Any, said: str) -> None:
    with pytest.raises(PromptError, match=said):
        read([{**WITHIN, "sentences": sentences}])


def test_another_object_is_no_set(tmp_path: Path) -> None:
    (tmp_path / "dev.json").write_text(json.dumps({"version": "1.0", "data": {"other": []}}))
    with pytest.raises(PromptError, match="must hold a JSON array of objects"):
        read(tmp_path / "dev.json")
