"""A run folder: its record, the key of each stage, and what is done, begun, finished or refused.

The folder remembers which stages are done, each with a key over everything that its result depends on. The same key again
is done already; another key is refused without `overwrite`, which removes that stage's files and those of all later stages.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from fairprune_framework import discovery
from fairprune_framework.calibration.builtin import text_file
from fairprune_framework.errors import AmbiguousName, RunFolderError, UnknownName
from fairprune_framework.plugin_sources import digest_in_use, refuse_edited
from fairprune_framework.recipes.loading import read_options
from fairprune_framework.recipes.recipe import ADOPTED, FIELDS, PLUGIN_KINDS, STAGE_FIELDS, Recipe
from fairprune_framework.utilities import files as provenance
from fairprune_framework.utilities import integrity, lock
from fairprune_framework.utilities.progress import Notify, silent
from fairprune_framework.utilities.schemas import RunRecord, read_checked
from fairprune_framework.utilities.versions import versions

RECORD, RECIPE = provenance.RUN_RECORD, "recipe.yaml"
CONTRASTS = "contrasts.jsonl"
CHECKPOINT = "checkpoint"
"""Folder with what an unfinished audit has summed; it goes when the audit is done, or a new one begins."""

_written: dict[Path, str] = {}
"""Folder -> sha256 of the record that this process wrote last."""

STAGES = ("read", "audit", "score", "plan", "prune", "evaluate", "report")
FILES: Mapping[str, tuple[str, ...]] = {
    "read": (CONTRASTS, "skipped.jsonl"),
    "audit": ("statistics.safetensors", "statistics.json"),
    "score": ("scores.safetensors",),
    "plan": ("plan.json",),
    "prune": ("model", "restoration.safetensors", "judging_text.json"),
    "evaluate": (
        "evaluation.json",
        "evaluation_items.parquet",
        "evaluation_samples.parquet",
        "exhibits.safetensors",
        "exhibits.json",
    ),
    "report": ("report.html", "model/README.md", "model/plan.json"),
}


JUDGED = (
    "verdict",
    "verdict_because",
    "verdict_reasons",
    "verdict_needs",
    "specificity",
    "random_sets",
    "abstained",
    "guard",
    "removal",
    "speed",
    "parameters_after",
)
"""Facts in the record about a plan that was carried out; they go with it."""
Contents = Callable[[Collection[str]], dict[str, Any]]
"""Gives, for those of some fields of the recipe that name a file or something in memory, what stands in a key: its hash."""


class RunFolder(os.PathLike[str]):
    """A folder with a recipe and a record, open for work or finished before. Nothing is written before a stage begins.

    It is a path: `folder / "plan.json"`.

    Args:
        recipe: what the folder is opened with.
        path: where; None: a temporary folder that lives as long as the object, and those made by `with_recipe`.
        overwrite: a stage that is done with other inputs is done again.
        contents: hashes of what the recipe's fields name, beyond the calibration text.
        given: fields of the recipe that were given anew. For the others, what they named when a stage was done is
            remembered, and not looked at again: the folder carries its inputs.
    """

    def __init__(
        self,
        recipe: Recipe,
        path: Path | None,
        *,
        overwrite: bool = False,
        notify: Notify = silent,
        contents: Contents = lambda names: {},
        given: Collection[str] = FIELDS,
    ) -> None:
        self._temporary = None if path is not None else tempfile.TemporaryDirectory(prefix="fairprune-")
        self.path = path if path is not None else Path(cast(Any, self._temporary).name)
        self.recipe, self.overwrite, self.notify, self._contents = recipe, overwrite, notify, contents
        self._given = set(given)
        record = self.path / RECORD
        self._seen = provenance.file_digest(record) if record.is_file() else None
        self.record: dict[str, Any] = (
            read_checked(record, RunRecord) if record.is_file() else {"format": RunRecord.FORMAT, "stages": {}}
        )

    def __truediv__(self, name: str | Path) -> Path:
        return self.path / name

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def temporary(self) -> bool:
        """The folder goes when the run does."""
        return self._temporary is not None

    def with_recipe(self, recipe: Recipe, *, overwrite: bool, notify: Callable[[str], None], contents: Contents) -> RunFolder:
        """The same folder under another recipe."""
        other = RunFolder(recipe, self.path, overwrite=overwrite, notify=notify, contents=contents)
        other._temporary = self._temporary
        other._given = self._given | {name for name in FIELDS if getattr(recipe, name) != getattr(self.recipe, name)}
        return other

    def key(self, stage: str) -> str:
        """Hash of all that the result of a stage depends on."""
        names = self._names(stage)
        recipe = self.recipe.to_yaml()
        content = {name: recipe[name] for name in names} | self._inputs(names)
        if plugins := self._plugin_digests(names):
            content["plugins"] = plugins
        if "plan_file" in self.record:
            content["plan"] = self.record["plan_file"]
        return provenance.digest(content)

    def _plugin_digests(self, names: Collection[str]) -> dict[str, str]:
        """Kind -> digest of the source of a plugin: what an edited one computed is not taken for its own."""
        kinds = [kind for kind in PLUGIN_KINDS if kind in names and getattr(self.recipe, kind) is not None]
        return {kind: digest_in_use(discovery.find(kind, getattr(self.recipe, kind).plugin)) for kind in kinds}

    def refuse_edited_plugins(self) -> None:
        """Raise `UserError` for a plugin of the recipe that this process imported before its files were edited."""
        for kind in PLUGIN_KINDS:
            if getattr(self.recipe, kind) is not None:
                with contextlib.suppress(UnknownName, AmbiguousName):  # told where it is needed
                    refuse_edited(discovery.find(kind, getattr(self.recipe, kind).plugin))

    def _edited_plugins(self, stage: str) -> str | None:
        known = self.record.get("plugin_sources", {})
        edited = [
            kind for kind, digest in self._plugin_digests(self._names(stage)).items() if known.get(kind, digest) != digest
        ]
        named = ", ".join(f"{kind} {getattr(self.recipe, kind).plugin!r}" for kind in edited)
        return f"another version of {named}" if named else None

    def _names(self, stage: str) -> list[str]:
        """Fields of the recipe that the result of a stage depends on."""
        names = [name for earlier in STAGES[: STAGES.index(stage) + 1] for name in STAGE_FIELDS[earlier]]
        adopted = "plan_file" in self.record and stage not in ("evaluate", "report")
        return [name for name in names if name in ADOPTED] if adopted else names

    def _inputs(self, names: Collection[str]) -> dict[str, Any]:
        """Field -> hash of the file, or of what is in memory, that it names; remembered of what was not given anew."""
        inputs = {name: value for name, value in self.record.get("inputs", {}).items() if name not in self._given}
        inputs = {name: value for name, value in inputs.items() if name in names}
        wanted = [name for name in names if name not in inputs]
        inputs |= self._contents(wanted)
        if "calibration" in wanted and self.recipe.calibration is not None:
            path = text_file(self.recipe.calibration)
            inputs["calibration"] = provenance.file_digest(path) if path.is_file() else None
        if "decisions" in wanted and self.recipe.decisions is not None and (path := Path(self.recipe.decisions)).is_file():
            inputs["decisions"] = provenance.file_digest(path)
        return inputs

    def input_hash(self, name: str) -> str | None:
        """Hash of the file that a field of the recipe names; None where it names none, or there is none."""
        return self._inputs([name]).get(name)

    def current(self, stage: str) -> bool:
        """The stage is finished with exactly these inputs, and its files are there."""
        known = self.record["stages"].get(stage)
        return known is not None and self.damage(stage) is None and bool(known["key"] == self.key(stage))

    def damage(self, stage: str) -> str | None:
        """Which file of a finished stage is missing or not what was written, in words; None: none."""
        known = self.record["stages"].get(stage)
        return None if known is None else integrity.damage(self.path, known["files"])

    def refuse_damaged(self, stage: str) -> None:
        """Raise `RunFolderError` where a file of a finished stage is missing or not what was written."""
        if (damage := self.damage(stage)) is not None:
            raise RunFolderError(f"{damage}: do the stage {stage!r} again with `fairprune {stage} --overwrite`")

    def place_of_model(self) -> str | None:
        """Where a model that is a local folder or file lies, if not where the recipe names it from this working directory."""
        name, kept = self.recipe.model, self.record.get("places", {}).get("model")
        if name is None or kept is None or "model" in self._given or Path(name).exists():
            return None
        return str(self.path / kept) if (self.path / kept).exists() else None

    def accept_model(self, fingerprint: str) -> str:
        """The fingerprint back; raises `RunFolderError` where the folder was made with another model."""
        known = self.record.get("hashes", {}).get("model")
        replaced = self.overwrite and not self.done("read")
        if known is not None and known != fingerprint and self.record["stages"] and not replaced:
            raise RunFolderError(
                f"{self} was made with another model ({known[:12]}); this one is {fingerprint[:12]}: choose another --output"
            )
        return fingerprint

    def has(self, stage: str) -> bool:
        """The record names a result of the stage, with whatever inputs."""
        return stage in self.record["stages"]

    def done(self, stage: str) -> bool:
        """The stage is finished with exactly these inputs.

        Raises:
            RunFolderError: it is finished with others, and `overwrite` was not given.
        """
        known = self.record["stages"].get(stage)
        if known is None:
            return False
        same = known["key"] == self.key(stage)
        damage = self.damage(stage) if same else None
        if same and damage is None:
            return True
        if not self.overwrite and damage is not None:
            raise RunFolderError(f"{damage}: give --overwrite to do the stage {stage!r} again")
        if not self.overwrite:
            old = read_options(self.path / RECIPE)
            new = self.recipe.to_file()
            changed = [name for name in new if new[name] != old.get(name)]
            what = f"other options ({', '.join(changed)})" if changed else self._edited_plugins(stage) or "other inputs"
            raise RunFolderError(
                f"{self} already holds the stage {stage!r} with {what}: give --overwrite to replace it, or another --output"
            )
        return False

    def needs(self, stage: str) -> None:
        """Raise `RunFolderError` unless an earlier stage is finished with these inputs."""
        if stage not in self.record["stages"]:
            raise RunFolderError(f"{self} holds no result of the stage {stage!r}: run `fairprune {stage}` first")
        self.refuse_damaged(stage)
        if not self.done(stage):
            raise RunFolderError(f"the stage {stage!r} of {self} is outdated: run `fairprune {stage} --overwrite` first")

    def own(self) -> None:
        """Become the one writer of a folder that exists, and sweep what killed ones left; nothing where this process is that already.

        Raises:
            RunFolderError: another process writes the folder, or did since it was opened; or a folder in it is a link.
        """
        for name in provenance.RUN_PARTS:
            if (self.path / name).is_symlink():
                raise RunFolderError(f"{self.path / name} is a link, and nothing is written through one: remove it")
        if lock.acquire(self.path):
            record = self.path / RECORD
            now = provenance.file_digest(record) if record.is_file() else None
            if now not in (self._seen, _written.get(self.path.resolve())):
                lock.release(self.path)
                raise RunFolderError(f"another process has written {self} in between: give the same command again")
            for folder in (self.path, *(self.path / name for name in provenance.RUN_PARTS)):
                provenance.sweep(folder)

    def tidy(self) -> None:
        """Remove what a process left that was killed when all was done; nothing where another process writes, or none may."""
        if (self.path / lock.FILE).exists():
            with contextlib.suppress(RunFolderError, OSError):
                self.own()

    def begin(self, stage: str) -> None:
        """Make room for a stage: its files and those of later stages go, and the recipe is written. Raises as `own`."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.own()
        later = STAGES[STAGES.index(stage) :]
        if stage == "read":
            provenance.remove(self.path / CHECKPOINT)
            self.record.pop("unsafe_options", None)
        for name in (name for each in later for name in FILES[each]):
            provenance.remove(self.path / name)
        for each in later:
            self.record["stages"].pop(each, None)
            for about in ("seconds", "work"):
                self.record.get(about, {}).pop(each, None)
        if stage in ("read", "audit", "score"):
            self.record.pop("plan_file", None)
        if stage in ("read", "audit", "score", "plan", "prune"):
            for name in JUDGED:
                self.record.pop(name, None)
        self.save()

    def finish(self, stage: str, seconds: float, files: Sequence[str], work: Mapping[str, Any] | None = None) -> None:
        """Write down that a stage is done.

        Args:
            work: what models computed in it.
        """
        inputs = self._inputs(self._names(stage))
        self.record["stages"][stage] = {"key": self.key(stage), "files": integrity.seal(self.path, files)}
        self.record["inputs"] = self.record.get("inputs", {}) | inputs
        sources = self._plugin_digests(STAGE_FIELDS[stage])
        if sources:
            self.record["plugin_sources"] = self.record.get("plugin_sources", {}) | sources
        self._given -= inputs.keys()
        self.record.setdefault("seconds", {})[stage] = round(seconds, 3)
        if work:
            self.record.setdefault("work", {})[stage] = dict(work)
        self.save()
        self.notify(f"{stage}: {seconds:.1f} s")

    def note(self, **facts: Any) -> None:
        """Add facts to the record; mappings are merged."""
        for name, value in facts.items():
            if isinstance(value, Mapping) and isinstance(self.record.get(name), dict):
                self.record[name] |= value
            else:
                self.record[name] = value

    def save(self) -> None:
        """Write `run.json` and `recipe.yaml`, each atomically."""
        import yaml

        plugins = {}
        for kind in PLUGIN_KINDS:
            if getattr(self.recipe, kind) is not None:
                entry = discovery.find(kind, getattr(self.recipe, kind).plugin)
                plugins[kind] = {"name": entry.name, "distribution": entry.distribution, "version": entry.version}
        self.note(versions=versions(), plugins=plugins, seeds={"run": self.recipe.seed})
        if self.recipe.unsafe:
            self.note(unsafe_options=self.recipe.unsafe)
        if self.recipe.model is not None and Path(self.recipe.model).exists():
            self.note(places={"model": os.path.relpath(self.recipe.model, self.path)})
        provenance.write_json(self.path / RECORD, self.record)
        _written[self.path.resolve()] = provenance.file_digest(self.path / RECORD)
        provenance.write_text(self.path / RECIPE, yaml.safe_dump(self.recipe.to_file(), sort_keys=False, allow_unicode=True))

    def release(self) -> None:
        """Let other processes write the folder."""
        lock.release(self.path)


def is_begun(folder: Path) -> bool:
    """The folder holds nothing but what a process leaves that is killed before its first stage is done."""
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir() if not provenance.is_unfinished(path)} - {lock.FILE}
    return not names or (names == {RECORD} and _is_first(folder / RECORD))


def _is_first(record: Path) -> bool:
    """Written just before the first recipe, which a kill kept from being written: no stage is in it."""
    try:
        return not provenance.read_json(record).get("stages")
    except RunFolderError:
        return False
