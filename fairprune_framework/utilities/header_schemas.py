"""What stands in the JSON headers of safetensors files, and in the notes beside checkpoints; read as all JSON files of a run folder."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from fairprune_framework.utilities.schemas import Count, PlanFile, Schema

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""A sha256."""
Size = Annotated[int, Field(ge=1, lt=2**63)]
Name = Annotated[str, Field(min_length=1, max_length=1000)]


def _false(value: bool) -> bool:
    if value:
        raise ValueError("must be false")
    return value


Off = Annotated[bool, AfterValidator(_false)]
"""False, and not 0."""


def _pair(of: Any) -> Any:
    """A list of two, which JSON has for a tuple."""
    return Annotated[list[of], Field(min_length=2, max_length=2)]


class Piece(Schema):
    """Where the units of a site lie in a parameter: a `Slice`, and its site."""

    site: Name
    parameter: Name
    role: Name
    axis: Count
    start: Count
    step: Size
    width: Size
    lead: list[Count]


class ChangedParameter(Schema):
    """A parameter that a removal changed, as it was."""

    shape: Annotated[list[Size], Field(min_length=1, max_length=8)]
    sha256: Digest
    pieces: Annotated[list[Piece], Field(min_length=1)]

    @model_validator(mode="after")
    def _inside(self) -> ChangedParameter:
        for piece in self.pieces:
            outside = any(index >= size for index, size in zip(piece.lead, self.shape, strict=False))
            if outside or not len(piece.lead) <= piece.axis < len(self.shape):
                raise ValueError("a piece must lie within its parameter")
        return self


class RestorationHeader(Schema):
    """The entry `fairprune` in the metadata of `restoration.safetensors`."""

    plan: PlanFile
    exact: bool
    round_to: Size
    weights: Digest
    pruned: Digest
    config: dict[Name, Size | Off | None]
    added: list[Name] = Field(default_factory=list)
    units: dict[Name, _pair(list[Count])]  # type: ignore[valid-type]
    parameters: dict[Name, ChangedParameter]

    @model_validator(mode="after")
    def _units_of_the_plan(self) -> RestorationHeader:
        planned = {site: sorted(units) for site, units in self.plan.sites.items() if units}
        if {site: sorted(cut + overwritten) for site, (cut, overwritten) in self.units.items()} != planned:
            raise ValueError("the units must be those of the plan")
        for name, parameter in self.parameters.items():
            for piece in parameter.pieces:
                if piece.site not in self.units or piece.parameter != name:
                    raise ValueError("a piece must be of a planned site and of its parameter")
        return self


class Window(Schema):
    """Which micro-batches of a window are done, read from `[pass, window, bit mask in hexadecimal, how many there are]`."""

    pass_: Count
    window: Count
    bits: Annotated[str, Field(pattern=r"^[0-9a-f]+$")]
    count: Size

    @model_validator(mode="before")
    @classmethod
    def _named(cls, row: Any) -> Any:
        if not isinstance(row, list) or len(row) != 4:
            raise ValueError("must be a list of a pass, a window, a bit mask and a number")
        return dict(zip(("pass_", "window", "bits", "count"), row, strict=True))

    @model_validator(mode="after")
    def _no_more_than_there_are(self) -> Window:
        if int(self.bits, 16).bit_length() > self.count:
            raise ValueError("a bit mask must not have more bits than there are micro-batches")
        return self


class Done(Schema):
    """The micro-batches that a sum contains."""

    windows: list[Window]
    contents: Digest
    contrasts: Count
    tokens: Count

    @model_validator(mode="after")
    def _once(self) -> Done:
        if len({(each.pass_, each.window) for each in self.windows}) < len(self.windows):
            raise ValueError("a window must stand once")
        return self


class CheckpointHeader(Schema):
    """The entry `header` in the metadata of a checkpoint."""

    format: str
    binding: dict[str, Any]
    sequence: Count
    counts: dict[str, list[Count]]
    done: Done
    splits: Count


class FailureFile(Schema):
    """`failed-<rank>.json`."""

    rank: Count
    reason: str
