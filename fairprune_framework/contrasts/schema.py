"""What a prompt set is made of: contrasts, each one template filled with two or more attribute values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fairprune_framework.errors import PromptError


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One text of a contrast, with the attribute value that it bears ("Black")."""

    attribute: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """V >= 2 texts that are equal but for the attribute. The identity of its template is (category, template_id).

    Raises:
        PromptError: fewer than two variants, an empty text, or two variants with the same text.
    """

    id: str
    category: str
    template_id: str
    variants: tuple[Variant, ...]
    context: str = ""
    control: bool = False
    """True: the same edit without a demographic meaning ("tall"/"short")."""
    split: str | None = None
    """`select`, `heldout`, or None: the set has no splits."""

    def __post_init__(self) -> None:
        if len(self.variants) < 2:
            raise PromptError(f"contrast {self.id!r} has {len(self.variants)} variant(s); a contrast needs at least two")
        texts = [variant.text for variant in self.variants]
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise PromptError(f"contrast {self.id!r} has an empty text")
        for text in texts:
            if texts.count(text) > 1:
                raise PromptError(f"contrast {self.id!r} has equal variants: {text!r} occurs {texts.count(text)} times")
        if self.split not in (None, "select", "heldout"):
            raise PromptError(
                f"The 'split' of contrast {self.id!r} must be 'select', 'heldout' or null. Got {self.split!r} instead."
            )

    @property
    def cluster(self) -> tuple[str, str]:
        """Identity of the template: the unit of splitting and resampling."""
        return (self.category, self.template_id)

    def to_json(self) -> dict[str, Any]:
        """One line of `contrasts.jsonl`."""
        return {
            "id": self.id,
            "category": self.category,
            "template_id": self.template_id,
            "context": self.context,
            "control": self.control,
            "split": self.split,
            "variants": [{"attribute": variant.attribute, "text": variant.text} for variant in self.variants],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Contrast:
        """Read one line of `contrasts.jsonl`; raises `PromptError` where a field is missing or has the wrong type."""
        try:
            variants = tuple(Variant(attribute=str(v["attribute"]), text=v["text"]) for v in data["variants"])
            return cls(
                id=str(data["id"]),
                category=str(data["category"]),
                template_id=str(data["template_id"]),
                variants=variants,
                context=str(data.get("context") or ""),
                control=bool(data.get("control", False)),
                split=data.get("split"),
            )
        except (KeyError, TypeError) as error:
            raise PromptError(f"not a contrast: {type(error).__name__}: {error}") from error


STEREOTYPED: Mapping[str, str] = {"more": "less", "pro": "anti", "stereotype": "anti-stereotype"}
"""Attribute of the stereotyping variant -> attribute of the other one: CrowS-Pairs, WinoBias, StereoSet."""


def stereotyping_variants(contrast: Contrast) -> tuple[int, int] | None:
    """Places of the stereotyping variant and of the other one; None where a contrast has no such pair.

    >>> pair = (Variant(attribute="anti", text="She fixed it."), Variant(attribute="pro", text="He fixed it."))
    >>> stereotyping_variants(Contrast(id="1", category="gender", template_id="1", variants=pair))
    (1, 0)
    """
    names = [variant.attribute for variant in contrast.variants]
    if len(names) == 2:
        for place, name in enumerate(names):
            if STEREOTYPED.get(name) == names[1 - place]:
                return place, 1 - place
    return None


def may_select(control: bool, split: str | None) -> bool:
    """A contrast may feed scores: it is no control, and of the split `select` where there are splits."""
    return not control and split in (None, "select")
