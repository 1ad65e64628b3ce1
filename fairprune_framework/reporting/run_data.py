"""The data of a folder for the report: files are read, nothing is computed, no model is loaded; missing and broken files are named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairprune_framework.errors import RunFolderError
from fairprune_framework.evaluation.metrics.names import DIVERGENCE
from fairprune_framework.utilities.files import read_json
from fairprune_framework.utilities.yaml_text import read_yaml

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Values = NDArray[np.floating[Any]]

RECORD, RECIPE, ABLATION = "run.json", "recipe.yaml", "ablation.json"
OPTIONAL = ("overlap", "transfer", "stability", "causal")
"""Optional files of other commands in a run folder, `<name>.json`."""
_NUMBER = re.compile(r"(?:^|\.)(\d+)(?=\.|$)")


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
        fields["record"] = read_json(folder / RECORD, "fairprune-run/1")
        fields["recipe_text"] = reader.maybe(RECIPE, lambda path: path.read_text(encoding="utf-8")) or ""
        fields["recipe"] = reader.maybe(RECIPE, read_yaml) or {}
        fields |= _stages(reader, fields["record"].get("stages") or {})
        fields["more"] = {
            name: content
            for name in OPTIONAL
            if (content := reader.maybe(f"{name}.json", lambda path: read_json(path))) is not None
        }
    fields["ablation"] = reader.maybe(ABLATION, lambda path: read_json(path))
    return Source(folder=folder, missing=tuple(reader.missing), damaged=tuple(reader.damaged), **fields)


def _stages(reader: _Reader, stages: Mapping[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "contrasts": tuple(reader.wanted("contrasts.jsonl", _lines, "the contrasts", "audit") or ()),
        "skipped": tuple(reader.maybe("skipped.jsonl", _lines) or ()),
        "plan": reader.wanted("plan.json", lambda path: read_json(path), "the chosen neurons", "plan"),
    }
    fields["scores"] = reader.wanted("scores.safetensors", _tensors, "bias and importance of each neuron", "score") or {}
    read = reader.wanted("evaluation.json", lambda path: read_json(path), "the metrics before and after", "evaluate")
    fields["evaluation"], fields["rows"] = read, tuple((read or {}).get("results", ()))
    if read is not None:
        fields["exhibits"] = reader.wanted(
            "exhibits.json", lambda path: read_json(path), "the contrasts that move a neuron", "evaluate --overwrite"
        )
        tensors = reader.wanted("exhibits.safetensors", _tensors, "token representations", "evaluate --overwrite")
        fields["representations"] = tensors or {}
    return fields


class _Reader:
    """Reads the files of one folder, and records missing and unreadable ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.missing: list[Missing] = []
        self.damaged: list[tuple[str, str]] = []

    def maybe(self, name: str, read: Callable[[Path], Any]) -> Any:
        """The content of a file; None if it is missing or unreadable."""
        path = self.folder / name
        if not path.is_file():
            return None
        try:
            return read(path)
        except Exception as error:  # any error of a parser: the report names the file and continues
            if name not in dict(self.damaged):
                self.damaged.append((name, " ".join(f"{type(error).__name__}: {error}".split())))
            return None

    def wanted(self, name: str, read: Callable[[Path], Any], what: str, stage: str) -> Any:
        """As `maybe`; a missing file is recorded."""
        if not (self.folder / name).is_file():
            self.missing.append(Missing(what=what, file=name, command=f"fairprune {stage} --output {self.folder}"))
        return self.maybe(name, read)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def _tensors(path: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return dict(load_file(path))
