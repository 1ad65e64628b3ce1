"""What a prompt set is made of: contrasts, each one template filled with two or more attribute values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from fairprune_framework.errors import PromptError

Role = Literal["demographic", "control", "legitimate"]
"""What a contrast is there for: to show what should not matter, how far any edit moves a model, what must matter."""
Split = Literal["select", "heldout", "heldout-words"]
"""`select` may feed scores; `heldout` judges; `heldout-words` judges by attribute words that `select` never saw."""
SPLITS: tuple[str, ...] = get_args(Split)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One text of a contrast, with the attribute value that it bears ("Black")."""

    attribute: str
    text: str
    right: tuple[str, ...] = ()
    """Of a legitimate contrast: the next words that are right after this text and wrong after the others ("mosque")."""


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """V >= 2 texts that are equal but for the attribute. The identity of its template is (category, template_id).

    Raises:
        PromptError: fewer than two variants, an empty text, two variants with the same text, a legitimate contrast without right
            words for each variant or with one word right for two, a role that contradicts the other fields, an unknown split,
            half of a surrogate pair in any text.
    """

    id: str
    category: str
    template_id: str
    variants: tuple[Variant, ...]
    context: str = ""
    control: bool = False
    """True: the same edit without a demographic meaning ("tall"/"short")."""
    split: str | None = None
    """`select`, `heldout`, `heldout-words`, or None: the set has no splits."""
    legitimate: bool = False
    """True: the attribute should change the next word, and each variant says which words are `right`."""
    neutral_of: str | None = None
    """Of a control: `<category>/<template_id>` of the demographic template whose text it fills with neutral words."""

    def __post_init__(self) -> None:
        if len(self.variants) < 2:
            raise PromptError(f"contrast {self.id!r} has {len(self.variants)} variant(s); a contrast needs at least two")
        texts = [variant.text for variant in self.variants]
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise PromptError(f"contrast {self.id!r} has an empty text")
        if len(set(texts)) < len(texts):
            text = next(text for text in texts if texts.count(text) > 1)
            raise PromptError(f"contrast {self.id!r} has equal variants: {text!r} occurs {texts.count(text)} times")
        if self.split not in (None, *SPLITS):
            known = ", ".join(map(repr, SPLITS))
            raise PromptError(f"The 'split' of contrast {self.id!r} must be {known} or null. Got {self.split!r} instead.")
        self._check_role()
        self._check_characters()

    def _check_characters(self) -> None:
        said = [self.id, self.category, self.template_id, self.context, self.neutral_of or ""]
        said += [word for variant in self.variants for word in (variant.attribute, variant.text, *variant.right)]
        try:
            "".join(said).encode("utf-8")
        except UnicodeEncodeError:
            self._name_half_character()

    def _name_half_character(self) -> None:
        fields = {"id": self.id, "category": self.category, "template_id": self.template_id, "context": self.context}
        for number, variant in enumerate(self.variants, start=1):
            fields |= {f"attribute of variant {number}": variant.attribute, f"text of variant {number}": variant.text}
            fields |= {f"right word {place} of variant {number}": word for place, word in enumerate(variant.right, start=1)}
        for field, text in (fields | {"neutral_of": self.neutral_of or ""}).items():
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise PromptError(
                    f"contrast {self.id!r}: the {field} holds half of a surrogate pair at character {error.start + 1}"
                ) from error

    def _check_role(self) -> None:
        if self.control and self.legitimate:
            raise PromptError(f"contrast {self.id!r} is marked as a control and as legitimate; it can have one role")
        if self.neutral_of is not None and not self.control:
            raise PromptError(f"contrast {self.id!r} names 'neutral_of' {self.neutral_of!r}, which only a control has")
        if self.neutral_of is not None and not all(self.neutral_of.partition("/")):
            raise PromptError(
                f"The 'neutral_of' of contrast {self.id!r} must be '<category>/<template_id>'. Got {self.neutral_of!r} instead."
            )
        taken: dict[str, str] = {}
        for variant in self.variants:
            if bool(variant.right) != self.legitimate:
                why = (
                    "has no right next words" if self.legitimate else "has right next words, but the contrast is not legitimate"
                )
                raise PromptError(f"variant {variant.attribute!r} of contrast {self.id!r} {why}")
            for word in variant.right:
                if not isinstance(word, str) or not word.strip() or word != word.strip():
                    raise PromptError(
                        f"a right word of contrast {self.id!r} must be a text without outer blanks. Got {word!r} instead."
                    )
                if taken.setdefault(word, variant.attribute) != variant.attribute:
                    raise PromptError(
                        f"contrast {self.id!r} has {word!r} as a right word of {taken[word]!r} and of {variant.attribute!r}"
                    )

    @property
    def role(self) -> Role:
        """`demographic`, `control` or `legitimate`."""
        return role_of(self.control, self.legitimate)

    @property
    def origin(self) -> tuple[str, str]:
        """Identity of the template that the text comes from: of a crossed control the demographic one, otherwise its own."""
        return origin_of(self.category, self.template_id, self.neutral_of)

    @property
    def cluster(self) -> tuple[str, str]:
        """Identity of the template: the unit of splitting and resampling."""
        return (self.category, self.template_id)

    def to_json(self) -> dict[str, Any]:
        """One line of `contrasts.jsonl`. `legitimate`, `right` and `neutral_of` are left out where a contrast has them not."""
        rest: dict[str, Any] = {"legitimate": True} if self.legitimate else {}
        if self.neutral_of is not None:
            rest["neutral_of"] = self.neutral_of
        return {
            "id": self.id,
            "category": self.category,
            "template_id": self.template_id,
            "context": self.context,
            "control": self.control,
            **rest,
            "split": self.split,
            "variants": [
                {
                    "attribute": variant.attribute,
                    "text": variant.text,
                    **({"right": list(variant.right)} if variant.right else {}),
                }
                for variant in self.variants
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Contrast:
        """Read one line of `contrasts.jsonl`; raises `PromptError` where a field is missing or has the wrong type."""
        try:
            variants = tuple(
                Variant(attribute=str(v["attribute"]), text=v["text"], right=tuple(v.get("right") or ()))
                for v in data["variants"]
            )
            return cls(
                id=str(data["id"]),
                category=str(data["category"]),
                template_id=str(data["template_id"]),
                variants=variants,
                context=str(data.get("context") or ""),
                control=bool(data.get("control", False)),
                split=data.get("split"),
                legitimate=bool(data.get("legitimate", False)),
                neutral_of=data.get("neutral_of"),
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


def role_of(control: bool, legitimate: bool) -> Role:
    """The role that two flags of a contrast say.

    >>> role_of(control=False, legitimate=True)
    'legitimate'
    """
    if control:
        return "control"
    return "legitimate" if legitimate else "demographic"


def origin_of(category: str, template_id: str, neutral_of: str | None) -> tuple[str, str]:
    """Identity of the template that a text comes from: of a crossed control the demographic one, otherwise its own.

    >>> origin_of("weather", "T1", "gender/T7")
    ('gender', 'T7')
    """
    if neutral_of is None:
        return category, template_id
    named, _, own = neutral_of.partition("/")
    return named, own


def stream_of(role: Role, split: str | None) -> Literal["contrasts", "controls", "legitimate"] | None:
    """The stream of an audit that a contrast feeds, and by which it may choose neurons; None: it may not.

    Of the split `select`, where there are splits, demographic contrasts feed `contrasts`, controls `controls`, and legitimate
    differences `legitimate`.

    >>> stream_of("control", "heldout") is None
    True
    """
    if split not in (None, "select"):
        return None
    streams: dict[Role, Literal["contrasts", "controls", "legitimate"]] = {"control": "controls", "legitimate": "legitimate"}
    return streams.get(role, "contrasts")
