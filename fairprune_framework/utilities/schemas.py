"""What stands in the JSON files of a run folder, field by field; every command reads them through `read_checked`.

Unknown fields are kept: a later release may write more. A wrong type, a number that is not finite or a list of the wrong length is one
line that names the file, the field, what came and what was expected.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from fairprune_framework.errors import RunFolderError, shortened, shown
from fairprune_framework.utilities.files import read_json

Count = Annotated[int, Field(ge=0, lt=2**63)]
Seed = Annotated[int, Field(ge=0, lt=2**64)]
Number = Annotated[float, Field(allow_inf_nan=False, gt=-1e300, lt=1e300)]


def _below(path: str) -> str:
    if path.startswith("/") or "\\" in path or ".." in path.split("/") or not path or len(path) > 1000:
        raise ValueError("must be a path below the folder")
    return path


Inside = Annotated[str, AfterValidator(_below)]
"""A path below the folder."""
ABSENT: Any = None
"""Default of a field that may be absent, but is never null."""
Stage = Literal["read", "audit", "score", "plan", "prune", "evaluate", "report"]


class Schema(BaseModel):
    """One kind of file, or a part of one."""

    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())
    FORMAT: ClassVar[str | None] = None


class StoredFile(Schema):
    """A file of a stage, as it was written."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: Count


class StageRecord(Schema):
    """A finished stage."""

    key: str
    files: dict[Inside, StoredFile]


class PluginRecord(Schema):
    """A plugin that was used."""

    name: str
    distribution: str
    version: str


class Contrasts(Schema):
    """How many contrasts were used."""

    used: Count
    skipped: Count
    others: dict[str, Any] = {}


class CalibrationRecord(Schema):
    """Which calibration text the folder holds."""

    key: str
    source: str


class GuardRecord(Schema):
    """What the guard measured."""

    increase: Number | None
    limit: Number
    held: bool
    bound_high: Number | None = None
    perplexity_before: Number | None = None
    perplexity_after: Number | None = None


class RemovalRecord(Schema):
    """What was removed."""

    operator: str
    padded: Count
    parameters_before: Count
    parameters_after: Count
    bytes_before: Count
    bytes_after: Count
    max_difference: Number | None
    note: str | None


class SpeedRecord(Schema):
    """Tokens per second before and after."""

    before: Number
    after: Number
    ratio: Number
    low: Number
    high: Number
    pairs: Count
    tokens: Count
    device: str
    dtype: str


class RatioRecord(Schema):
    """A ratio with its interval and its one-sided bounds."""

    ratio: Number | None
    ci_low: Number | None
    ci_high: Number | None
    bound_low: Number | None = None
    bound_high: Number | None = None


class SideRecord(Schema):
    """The demographic contrasts, or the controls."""

    change: RatioRecord
    effective: Number


class SpecificityRecord(Schema):
    """Demographic contrasts against controls."""

    ratio_of_ratios: RatioRecord
    geometric: RatioRecord
    at_equal_size: RatioRecord = ABSENT
    demographic: SideRecord
    controls: SideRecord


class RunRecord(Schema):
    """`run.json`."""

    FORMAT = "fairprune-run/1"
    stages: dict[Stage, StageRecord]
    versions: dict[str, str | None] = {}
    plugins: dict[str, PluginRecord] = {}
    plugin_sources: dict[str, str] = {}
    seeds: dict[str, Seed] = {}
    places: dict[str, str] = {}
    hashes: dict[str, str] = {}
    inputs: dict[str, Any] = {}
    contrasts: Contrasts = ABSENT
    calibration: CalibrationRecord = ABSENT
    architecture: str = ABSENT
    seconds: dict[str, Number] = {}
    work: dict[str, dict[str, Number | None]] = {}
    audit: dict[str, Any] = {}
    micro_batch_tokens: Annotated[int, Field(ge=1)] = ABSENT
    parameters_before: Count = ABSENT
    parameters_after: Count = ABSENT
    guard: GuardRecord = ABSENT
    removal: RemovalRecord = ABSENT
    speed: SpeedRecord = ABSENT
    abstained: bool = ABSENT
    abstained_because: str = ABSENT
    verdict: str = ABSENT
    verdict_because: str = ABSENT
    verdict_reasons: list[dict[str, Any]] = []
    verdict_needs: list[str] = []
    specificity: SpecificityRecord | None = None
    random_sets: list[Number] = []
    statistic_sources: dict[str, str] = {}
    n_unequal: Count = ABSENT
    plan_file: str = ABSENT
    unsafe_options: dict[str, bool | str] = {}

    @model_validator(mode="after")
    def _reasons(self) -> RunRecord:
        for said, name in ((self.verdict is not None, "verdict_because"), (self.abstained is True, "abstained_because")):
            if said and getattr(self, name) is None:
                raise ValueError(f"the field {name!r} must stand beside {name.partition('_')[0]!r}")
        return self


class Counts(Schema):
    """Contrasts of each category, and documents."""

    contrasts: list[Count]
    calibration: list[Count]
    controls: list[Count] = []
    legitimate: list[Count] = []


class StatisticsFile(Schema):
    """`statistics.json`."""

    FORMAT = "fairprune-statistics/1"
    categories: list[str]
    control_categories: list[str] = []
    legitimate_categories: list[str] = []
    counts: Counts
    statistics: list[str]
    composition: str
    cluster_counts: list[list[Count]] = []

    @model_validator(mode="after")
    def _lengths(self) -> StatisticsFile:
        groups = len(self.categories)
        if len(set(self.categories)) != groups:
            raise ValueError("categories must be distinct")
        for stream, numbers, names in (
            ("controls", self.counts.controls, self.control_categories),
            ("legitimate contrasts", self.counts.legitimate, self.legitimate_categories),
        ):
            if len(numbers) not in (0, len(names)):
                raise ValueError(f"counts must hold one number for each of the {len(names)} categories of {stream}")
        if len(self.counts.contrasts) not in (0, groups) or len(self.cluster_counts) not in (0, groups):
            raise ValueError(f"counts must hold one number for each of the {groups} categories")
        return self


class PlanModel(Schema):
    """The model that a plan is for."""

    name: str
    fingerprint: str


class Requested(Schema):
    """The budget that was asked for."""

    budget: str | None = None
    units: Count | None = None


class Achieved(Schema):
    """What of it was planned."""

    units: Count | None = None
    fraction: Number | None = None
    per_layer: dict[str, Count] | None = None


class PlanFile(Schema):
    """`plan.json`."""

    FORMAT = "fairprune-plan/1"
    model: PlanModel
    operator: Literal["remove", "zero", "scale", "mean"]
    factor: Number | None = None
    sites: dict[str, list[Count]]
    categories: dict[str, list[Count]] | None = {}
    category_names: list[str] | None = []
    requested: Requested | None = None
    achieved: Achieved | None = None
    abstained: bool = False
    reason: str | None = None


class KeyFile(Schema):
    """`key.json` of an ablation."""

    key: str
    earlier_cells: Count


class JudgedOnFile(Schema):
    """`judged_on.json` of an ablation."""

    contrasts: Count
    templates: Count
    controls: Count


class CellFile(Schema):
    """`cells/<id>.json` of an ablation."""

    cell: str
    control: bool
    units: Count
    guard_held: bool
    bias_before: Number
    bias_after: Number
    bias_change: Number | None
    perplexity_change: Number | None
    seconds: Number
    what: str


class AblationFile(Schema):
    """`ablation.json`."""

    FORMAT = "fairprune-ablation/1"
    recipe: dict[str, Any] = {}
    judged_by: str | None = None
    judged_on: JudgedOnFile | None = None
    cells_looked_at: Count = 0
    earlier_cells: Count = 0
    confirmed: dict[str, Any] | list[Any] | None = None
    cells: list[dict[str, Any]]


def problem(data: Any, schema: type[Schema]) -> str | None:
    """What is wrong with `data`, in at most 500 characters: the field, what was expected, and what stands there. None: nothing is."""
    try:
        schema.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"] if part != "[key]")
        what = first["msg"].removeprefix("Value error, ")
        got = f". Got {shown(first['input'])} instead" if place and first["type"] != "missing" else ""
        named = f"the field {shortened(place, 120)!r}: " if place else ""
        return f"{named}{what[:1].lower()}{shortened(what[1:], 200)}{got}"
    return None


def check(data: Any, schema: type[Schema], where: str) -> None:
    """Raise `RunFolderError` unless `data` is what `schema` says."""
    if (found := problem(data, schema)) is not None:
        raise RunFolderError(f"{where} is damaged: {found}")


def read_checked(path: Path, schema: type[Schema]) -> dict[str, Any]:
    """Read a JSON file as it stands.

    Raises:
        RunFolderError: it is absent, no JSON, of another format, or a field is not what the schema says.
    """
    data = read_json(path, schema.FORMAT)
    check(data, schema, str(path))
    return data
