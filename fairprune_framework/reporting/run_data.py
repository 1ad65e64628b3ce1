"""The data of a folder for the report: files are read, nothing is computed, no model is loaded; missing and broken files are named."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairprune_framework.errors import RunFolderError, UserError, shortened, shown
from fairprune_framework.evaluation.files import EvaluationFile, ExhibitsFile
from fairprune_framework.evaluation.metrics.names import DIVERGENCE
from fairprune_framework.utilities import integrity
from fairprune_framework.utilities.answer_schemas import QUESTIONS
from fairprune_framework.utilities.files import RUN_RECORD, parse_json
from fairprune_framework.utilities.schemas import AblationFile, PlanFile, RunRecord, Schema, check, read_checked
from fairprune_framework.utilities.yaml_text import read_yaml

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Values = NDArray[np.floating[Any]]

RECORD, RECIPE, ABLATION = RUN_RECORD, "recipe.yaml", "ablation.json"
_NUMBER = re.compile(r"(?:^|\.)(\d{1,18})(?=\.|$)")


@dataclass(frozen=True, kw_only=True)
class Missing:
    """A missing part of the report, and the command that produces it."""

    what: str
    file: str
    command: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """The content of one folder. Fields are None, or empty, if the file is missing or unreadable."""

    folder: Path
    record: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    recipe_text: str = ""
    contrasts: tuple[Mapping[str, Any], ...] = ()
    skipped: tuple[Mapping[str, Any], ...] = ()
    scores: Mapping[str, Values] = field(default_factory=dict)
    """As in `scores.safetensors`."""
    plan: Mapping[str, Any] | None = None
    rows: tuple[Mapping[str, Any], ...] = ()
    """`results` of `evaluation.json`."""
    evaluation: Mapping[str, Any] | None = None
    exhibits: Mapping[str, Any] | None = None
    representations: Mapping[str, Values] = field(default_factory=dict)
    """As in `exhibits.safetensors`."""
    more: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Name -> content of the optional files."""
    ablation: Mapping[str, Any] | None = None
    missing: tuple[Missing, ...] = ()
    damaged: tuple[tuple[str, str], ...] = ()
    """(file, reason)."""

    @property
    def model(self) -> str:
        """The name of the model."""
        plan_model = (self.plan or {}).get("model") or {}
        ablation_model = (self.ablation or {}).get("model")
        name = self.recipe.get("model") or plan_model.get("name") or ablation_model
        return str(name["name"] if isinstance(name, Mapping) else name or "a model in memory")

    @property
    def fingerprint(self) -> str | None:
        """The fingerprint of the model, if known."""
        value = self.record.get("hashes", {}).get("model")
        return None if value is None else str(value)

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.resolve().name

    @property
    def layers(self) -> dict[str, int]:
        """site -> layer, for sites with scores."""
        return {name: layer_of(name) for name in sites_of(self.scores)}

    def planned(self, site: str) -> list[int]:
        """The planned units of a site."""
        return list((self.plan or {}).get("sites", {}).get(site, ()))

    def find(self, metric: str, **fields: Any) -> Mapping[str, Any] | None:
        """The row of `evaluation.json` for this metric; omitted fields are null, `control` is False."""
        wanted = {"metric": metric, "split": None, "control": False, "category": None, "layer": None, **fields}
        return next((row for row in self.rows if all(row.get(key) == value for key, value in wanted.items())), None)

    @property
    def judged_split(self) -> str | None:
        """The split of the charts: `heldout` if present."""
        splits = {row.get("split") for row in self.rows if row["metric"] == DIVERGENCE and not row["control"]}
        return next((split for split in ("heldout", "select") if split in splits), None)


def layer_of(site: str) -> int:
    """The layer number in the name of a site.

    >>> layer_of("model.layers.7.mlp.experts.3")
    7
    """
    match = _NUMBER.search(site)
    return int(match[1]) if match else 0


def sites_of(scores: Mapping[str, Any]) -> list[str]:
    """The sites of the scores, by layer."""
    names = {key.removeprefix("bias/") for key in scores if key.startswith("bias/")}
    return sorted(names, key=lambda name: (layer_of(name), name))


def read_source(folder: str | Path) -> Source:
    """Read a run folder or an ablation folder.

    Raises:
        RunFolderError: it is neither, or `run.json` itself is unreadable.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RunFolderError(
            f"there is no run folder {folder}: create one with `fairprune run MODEL --prompts SET --output {folder}`"
        )
    if not (folder / RECORD).is_file() and not (folder / ABLATION).is_file():
        raise RunFolderError(f"{folder} is not a run folder: it contains neither {RECORD} nor {ABLATION}")
    reader = _Reader(folder)
    fields: dict[str, Any] = {}
    if (folder / RECORD).is_file():
        fields["record"] = read_checked(folder / RECORD, RunRecord)
        for stage in fields["record"]["stages"].values():
            reader.stored |= stage["files"]
        fields["recipe_text"] = reader.maybe(RECIPE, lambda path: path.read_text(encoding="utf-8")) or ""
        fields["recipe"] = reader.maybe(RECIPE, read_yaml) or {}
        fields |= _stages(reader)
        fields["more"] = {
            name: content
            for name, schema in QUESTIONS.items()
            if (content := reader.maybe(f"{name}.json", partial(read_checked, schema=schema))) is not None
        }
    fields["ablation"] = reader.maybe(ABLATION, partial(read_checked, schema=AblationFile))
    return Source(folder=folder, missing=tuple(reader.missing), damaged=tuple(reader.damaged), **fields)


def _stages(reader: _Reader) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "contrasts": tuple(
            reader.wanted("contrasts.jsonl", partial(_lines, schema=ContrastLine), "the contrasts", "audit") or ()
        ),
        "skipped": tuple(reader.maybe("skipped.jsonl", partial(_lines, schema=SkippedLine)) or ()),
        "plan": reader.wanted("plan.json", partial(read_checked, schema=PlanFile), "the chosen neurons", "plan"),
    }
    fields["scores"] = reader.wanted("scores.safetensors", _scores, "bias and importance of each neuron", "score") or {}
    evaluation = partial(read_checked, schema=EvaluationFile)
    read = reader.wanted("evaluation.json", evaluation, "the metrics before and after", "evaluate")
    fields["evaluation"], fields["rows"] = read, tuple((read or {}).get("results", ()))
    if read is not None:
        exhibits = partial(read_checked, schema=ExhibitsFile)
        described = reader.wanted("exhibits.json", exhibits, "the contrasts that move a neuron", "evaluate --overwrite")
        tensors = reader.wanted("exhibits.safetensors", _tensors, "token representations", "evaluate --overwrite")
        if described is not None and tensors is not None and (reason := _misfit(described, tensors)):
            reader.damaged.append(("exhibits.safetensors", reason))
            tensors = None
        fields["exhibits"] = described
        fields["representations"] = tensors or {}
    return fields


class _Reader:
    """Reads the files of one folder, and records missing and unreadable ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stored: dict[str, dict[str, Any]] = {}
        """File -> sha256 and size as it was written, of those that a stage left."""
        self.missing: list[Missing] = []
        self.damaged: list[tuple[str, str]] = []

    def maybe(self, name: str, read: Callable[[Path], Any]) -> Any:
        """The content of a file; None if it is missing or unreadable."""
        path = self.folder / name
        if not path.is_file():
            return None
        if name in self.stored and (damage := integrity.damage(self.folder, {name: self.stored[name]})) is not None:
            self._name(name, damage)
            return None
        try:
            return read(path)
        except Exception as error:  # any error of a parser: the report names the file and continues
            said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            self._name(name, shortened(" ".join(said.split()), 300))
            return None

    def _name(self, name: str, reason: str) -> None:
        if name not in dict(self.damaged):
            self.damaged.append((name, reason))

    def wanted(self, name: str, read: Callable[[Path], Any], what: str, stage: str) -> Any:
        """As `maybe`; a missing file is recorded."""
        if not (self.folder / name).is_file():
            self.missing.append(Missing(what=what, file=name, command=f"fairprune {stage} --output {self.folder}"))
        return self.maybe(name, read)


class VariantLine(Schema):
    """A text of a contrast."""

    attribute: str
    text: str


class ContrastLine(Schema):
    """A line of `contrasts.jsonl`."""

    id: str
    category: str
    control: bool
    split: str | None
    variants: list[VariantLine]


class SkippedLine(Schema):
    """A line of `skipped.jsonl`."""

    where: str
    reason: str


def _lines(path: Path, schema: type[Schema]) -> list[dict[str, Any]]:
    lines = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if line.strip():
            lines.append(parse_json(line))
            check(lines[-1], schema, f"line {number} of {path.name}")
    return lines


def _tensors(path: Path) -> dict[str, Any]:
    import numpy as np
    from safetensors.numpy import load_file

    tensors = dict(load_file(path))
    if bad := next((name for name, value in tensors.items() if value.dtype.kind == "f" and not np.isfinite(value).all()), None):
        raise ValueError(f"{shown(bad)} holds NaN or Inf")
    return tensors


def _scores(path: Path) -> dict[str, Any]:
    tensors = _tensors(path)
    for name, value in tensors.items():
        site = tensors.get(f"bias/{name.rpartition('/')[2]}")
        if value.ndim != 1 or site is None or value.shape != site.shape:
            raise ValueError(f"{shown(name)} has the shape {value.shape}")
    return tensors


def _misfit(exhibits: Mapping[str, Any], tensors: Mapping[str, Any]) -> str | None:
    """Why what is drawn of tokens does not belong to the contrasts that the exhibits name; None: it does."""
    from fairprune_framework.functional.planes import PARTS, drawn_tokens

    taps_of = {str(place): projection["layers"] for place, projection in enumerate(exhibits["projections"])}
    for name in tensors:
        part, _, rest = name.partition("/")
        index, _, tap = rest.partition("/")
        if part in PARTS and tap not in taps_of.get(index, ()):
            return f"{shown(name)} is of no contrast and output that `exhibits.json` names"
    for place, projection in enumerate(exhibits["projections"]):
        rows = sum(int(keep.sum()) for keep in drawn_tokens(projection["variants"]))
        for tap, layers in projection["layers"].items():
            shapes = {"before": (len(layers), rows, 2), "share": (len(layers), 2), "distance_before": (len(layers),)}
            shapes |= {"after": shapes["before"], "distance_after": shapes["distance_before"]}
            here = {part: tensors[name] for part in PARTS if (name := f"{part}/{place}/{tap}") in tensors}
            for group in (("before", "share", "distance_before"), ("after", "distance_after")):
                if len({part in here for part in group}) > 1:
                    return f"of '{place}/{tap}' there are not all of {', '.join(group)}"
            for part, found in here.items():
                if found.shape != shapes[part]:
                    return f"'{part}/{place}/{tap}' has the shape {found.shape}, expected {shapes[part]}"
    return None
