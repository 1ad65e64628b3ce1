"""What stands in the files of the answers of `fairprune ask`, read as all JSON files of a run folder."""

from __future__ import annotations

from pydantic import model_validator

from fairprune_framework.utilities.schemas import Count, Number, Schema

Matrix = list[list[Number | None]]


class _Square(Schema):
    categories: list[str]

    def _refuse_other_sizes(self, columns: int, *names: str) -> None:
        rows = len(self.categories)
        for name in names:
            matrix = getattr(self, name)
            if len(matrix) != rows or any(len(row) != columns for row in matrix):
                raise ValueError(f"{name} must have {rows} rows of {columns}")


class OverlapFile(_Square):
    """`overlap.json`."""

    FORMAT = "fairprune-overlap/1"
    units: list[Count]
    population: Count
    counts: list[list[Count]]
    jaccard: list[list[Number]]
    p_values: Matrix
    p_adjusted: Matrix

    @model_validator(mode="after")
    def _sizes(self) -> OverlapFile:
        self._refuse_other_sizes(len(self.categories), "counts", "jaccard", "p_values", "p_adjusted")
        return self


class Spillover(Schema):
    """How many categories get worse where another one was selected for."""

    cells: Count
    worse: Count
    share_worse: Number | None
    not_harmed: Count
    not_estimable: Count
    margin: Number


class TransferFile(_Square):
    """`transfer.json`."""

    FORMAT = "fairprune-transfer/1"
    judged: list[str]
    controls: list[bool]
    split: str | None
    units: list[Count]
    spillover: Spillover
    change: Matrix
    ci_low: Matrix
    ci_high: Matrix
    p_values: Matrix
    p_adjusted: Matrix

    @model_validator(mode="after")
    def _sizes(self) -> TransferFile:
        if len(self.controls) != len(self.judged):
            raise ValueError("controls must be as many as judged")
        self._refuse_other_sizes(len(self.judged), "change", "ci_low", "ci_high", "p_values", "p_adjusted")
        return self


class ChosenUnit(Schema):
    """How often a neuron was chosen."""

    site: str
    unit: Count
    frequency: Number
    planned: bool


class StabilityFile(Schema):
    """`stability.json`."""

    FORMAT = "fairprune-stability/1"
    replicates: Count
    groups: dict[str, Count]
    planned: Count
    mean_frequency: Number | None
    stable_75: Count
    mean_jaccard: Number | None
    units: list[ChosenUnit]
    units_ever_chosen: Count


class Effect(Schema):
    """One change, with its interval."""

    before: Number | None
    after: Number | None
    change: Number | None
    ci_low: Number | None
    ci_high: Number | None
    p_value: Number | None


class RandomSet(Schema):
    """What masking one set of random neurons changed."""

    change: Number | None
    control_change: Number | None = None


class CausalFile(Schema):
    """`causal.json`."""

    FORMAT = "fairprune-causal/1"
    split: str | None
    units: Count
    operator: str
    demographic: Effect | None
    control: Effect | None
    random: list[RandomSet]
    p_value: Number | None
    control_ratio: Number | None = None
    norm_ratio: Number | None = None


QUESTIONS: dict[str, type[Schema]] = {
    "overlap": OverlapFile,
    "transfer": TransferFile,
    "stability": StabilityFile,
    "causal": CausalFile,
}
"""Question -> what its file `<question>.json` holds."""
