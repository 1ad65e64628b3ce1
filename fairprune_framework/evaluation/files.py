"""What stands in `evaluation.json` and `exhibits.json`, field by field."""

from __future__ import annotations

import dataclasses
import typing
from typing import Annotated, Any

from pydantic import Field, create_model, model_validator

from fairprune_framework.evaluation.rows import ResultRow
from fairprune_framework.utilities.schemas import Count, Number, Schema


def _row_schema() -> type[Schema]:
    """The fields of a `ResultRow`, with its types; numbers finite, counts not below 0."""
    fields: dict[str, Any] = {}
    hints = typing.get_type_hints(ResultRow)
    for each in dataclasses.fields(ResultRow):
        hint = hints[each.name]
        for plain, bounded in ((float, Number), (int, Count)):
            if plain in (hint, *typing.get_args(hint)):
                hint = bounded if hint is plain else bounded | None
        fields[each.name] = (hint, ...)  # `to_json` writes all, those with a default too
    return create_model("RowFile", __base__=Schema, **fields)


RowFile = _row_schema()


class FirstDifference(Schema):
    """Where two continuations differ first."""

    token: Count
    before: Annotated[list[Count], Field(min_length=2, max_length=2)]
    after: Annotated[list[Count], Field(min_length=2, max_length=2)]


class Generation(Schema):
    """A prompt and its continuations."""

    prompt: str
    before: str
    after: str | None = None
    first_difference: FirstDifference | None = None


class EvaluationFile(Schema):
    """`evaluation.json`."""

    FORMAT = "fairprune-evaluation/1"
    applied_by: str | None
    n_unequal: Count
    results: list[RowFile]  # type: ignore[valid-type]
    generations: list[Generation]
    tasks: dict[str, Any] = Field(default_factory=dict)


class LookedAt(Schema):
    """How many contrasts were looked at."""

    looked_at: Count
    of: Count


class MovedVariant(Schema):
    """A variant and the mean activation on it."""

    attribute: str
    text: str
    mean: Number


class MovingContrast(Schema):
    """A contrast that moves a neuron."""

    id: str
    category: str
    movement: Number
    variants: list[MovedVariant]


class ShownUnit(Schema):
    """A neuron with the contrasts that move it."""

    site: str
    layer: Count
    unit: Count
    planned: bool
    bias: Number | None
    importance: Number | None
    contrasts: list[MovingContrast]


class ProjectedVariant(Schema):
    """A variant with its tokens."""

    attribute: str
    text: str
    tokens: Annotated[list[str], Field(min_length=1)]
    start: Count
    end: Count
    all_tokens: Count

    @model_validator(mode="after")
    def _inside(self) -> ProjectedVariant:
        if not self.start <= self.end <= len(self.tokens):
            raise ValueError("start and end must lie within the tokens")
        return self


class Projection(Schema):
    """A contrast whose tokens are drawn."""

    contrast: str
    category: str
    control: bool
    split: str | None
    variants: Annotated[list[ProjectedVariant], Field(min_length=2)]
    layers: dict[str, list[Count]]
    cut_to_float16: Count


class ExhibitsFile(Schema):
    """`exhibits.json`."""

    FORMAT = "fairprune-exhibits/2"
    contrasts: LookedAt
    units: list[ShownUnit]
    projections: list[Projection]
    generations: list[Generation] = Field(default_factory=list)
