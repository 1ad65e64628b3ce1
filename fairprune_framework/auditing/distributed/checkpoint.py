"""Partial sums on disk, so that an audit resumes after a kill, on any number of ranks.

Each start of an audit is a session. A session begins by writing the sums of earlier ones as one file, `base-<session>`; then each
rank writes what it adds as `rank-<session>-<rank>`, in two alternating generations. A file contains sums, counts, and the
ids of their micro-batches, with a checksum; files without a common micro-batch can be added, whatever rank wrote them. In place of
a damaged file the previous generation, or session, is used. Ranks need no coordination.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairprune_framework.auditing.distributed.completed import CompletedBatches
from fairprune_framework.auditing.reductions import merged, without_neutral
from fairprune_framework.errors import RunFolderError, shortened, shown
from fairprune_framework.utilities.files import parse_json, write_json, write_tensors
from fairprune_framework.utilities.header_schemas import CheckpointHeader, FailureFile
from fairprune_framework.utilities.progress import Notify, silent
from fairprune_framework.utilities.schemas import problem, read_checked

_FORMAT = "fairprune-checkpoint/1"
_NAME = re.compile(r"(base|rank)-(\d{1,18})(?:-(\d{1,18})\.([ab]))?\.safetensors")


@dataclass(kw_only=True)
class Part:
    """Sums over a set of micro-batches."""

    words: dict[str, Tensor] = field(default_factory=dict)
    """key -> (2, G, R, K) float64."""
    counts: dict[str, list[int]] = field(default_factory=dict)
    done: CompletedBatches = field(default_factory=CompletedBatches)
    splits: int = 0
    """Micro-batches that were computed in halves."""

    def misfit(self, other: Part) -> str | None:
        """Why sums cannot be added: other sizes, groups or numbers of micro-batches. None: they can, if their micro-batches are others."""
        for key, words in other.words.items():
            if key in self.words and self.words[key].shape != words.shape:
                return f"{shown(key)} is {tuple(words.shape)}, elsewhere {tuple(self.words[key].shape)}"
        for stream, counts in other.counts.items():
            if len(self.counts.get(stream, counts)) != len(counts):
                return f"it counts {len(counts)} groups of {shown(stream)}, elsewhere there are {len(self.counts[stream])}"
        for (pass_, window), count in other.done.counts.items():
            if (known := self.done.counts.get((pass_, window), count)) != count:
                return f"pass {pass_}, window {window} has {count} micro-batches, elsewhere {known}"
        return None

    def add(self, other: Part) -> None:
        """Add sums over other micro-batches, which fit; raises `FairpruneError` where some are the same."""
        self.done = self.done.union(other.done)
        for key, words in other.words.items():
            self.words[key] = merged(key, torch.stack([self.words[key], words])) if key in self.words else words
        for stream, counts in other.counts.items():
            known = self.counts.get(stream, [0] * len(counts))
            self.counts[stream] = [a + b for a, b in zip(known, counts, strict=True)]
        self.splits += other.splits


class Checkpoint:
    """The folder `checkpoint/` of a run.

    Args:
        folder: created by the first write.
        binding: name -> value of all that partial sums depend on; the names appear in messages.
        notify: called with a line about each damaged file.
    """

    def __init__(self, folder: Path, binding: Mapping[str, Any], notify: Notify = silent) -> None:
        self.folder, self.binding, self.notify = folder, json.loads(json.dumps(binding)), notify
        self.session = 0
        self._written: dict[int, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        """For a process of its own: nobody is told there, and a closure cannot go there."""
        return {**self.__dict__, "notify": silent}

    def load(self) -> Part:
        """The sums of all earlier sessions.

        Raises:
            RunFolderError: it has another binding; the differences are named.
        """
        bases: dict[int, Path] = {}
        ranks: dict[tuple[int, int], list[Path]] = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            if (match := _NAME.fullmatch(path.name)) is None:
                continue
            self.session = max(self.session, int(match[2]) + 1)
            if match[1] == "base":
                bases[int(match[2])] = path
            else:
                ranks.setdefault((int(match[2]), int(match[3])), []).append(path)
        total, since = Part(), -1
        for session in sorted(bases, reverse=True):
            if (base := self._newest([bases[session]])) is not None:
                total, since = base, session
                break
        for (session, _), paths in sorted(ranks.items()):
            if session < since or (part := self._newest(paths)) is None:
                continue
            if total.done.overlaps(part.done):
                self.notify(f"{paths[0].name} repeats micro-batches of other files: it is not used")
                continue
            if (odd := total.misfit(part)) is not None:
                self.notify(f"checkpoint file {paths[0].name} is damaged ({odd}): it is not used")
                continue
            total.add(part)
        return total

    def _newest(self, paths: list[Path]) -> Part | None:
        read = []
        for path in paths:
            try:
                read.append(self._read(path))
            except _Damaged as error:
                self.notify(f"checkpoint file {path.name} is damaged ({error}): the previous one is used")
        return max(read, key=lambda pair: pair[0])[1] if read else None

    def _read(self, path: Path) -> tuple[int, Part]:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                head = parse_json(metadata["header"], constants="keep")
                words = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                checksum = metadata["sha256"]
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise _Damaged(shortened(str(error).splitlines()[0], 200) if str(error) else type(error).__name__) from error
        if odd := [key for key, value in words.items() if value.dtype != torch.float64 or value.ndim != 4 or len(value) != 2]:
            raise _Damaged(f"{shown(odd[0])} is no pair of words in float64")
        if checksum != _checksum(head, words):
            raise _Damaged("wrong checksum")
        if (wrong := problem(head, CheckpointHeader) or _misfit(words, head["counts"])) is not None:
            raise _Damaged(wrong)
        if head["format"] != _FORMAT:
            raise RunFolderError(f"{path} must be of format {_FORMAT!r}. Got {shown(head['format'])} instead.")
        if different := _differences(head["binding"], self.binding):
            raise RunFolderError(
                f"the checkpoint in {self.folder} was made with {different}: give --overwrite to begin the audit anew, or "
                "another --output"
            )
        part = Part(words=words, counts=head["counts"], done=CompletedBatches.from_json(head["done"]), splits=head["splits"])
        return head["sequence"], part

    def begin(self, before: Part) -> None:
        """Open a session on the sums that `load` returned, and remove files that are no longer needed."""
        if before.done.bits:
            self._write(f"base-{self.session:06d}", before, 0)
        for path in self.folder.glob("*.safetensors"):
            if (match := _NAME.fullmatch(path.name)) is not None and int(match[2]) < self.session - 1:
                path.unlink(missing_ok=True)

    def keep(self, part: Part, rank: int) -> None:
        """Write the sums of a rank since the session began."""
        sequence = self._written.get(rank, 0)
        self._written[rank] = sequence + 1
        self._write(f"rank-{self.session:06d}-{rank:05d}.{'ab'[sequence % 2]}", part, sequence)

    def _write(self, name: str, part: Part, sequence: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        head = {
            "format": _FORMAT,
            "binding": self.binding,
            "sequence": sequence,
            "counts": part.counts,
            "done": part.done.to_json(),
            "splits": part.splits,
        }
        metadata = {"header": json.dumps(head), "sha256": _checksum(head, part.words)}
        write_tensors(self.folder / f"{name}.safetensors", part.words, metadata=metadata, durable=True)

    # -- reasons of failed ranks -----------------------------------------------------------------------------------------------

    def write_failure(self, rank: int, error: BaseException) -> None:
        """Write down why a rank fails, for the other ranks to read; the first reason is kept. Does not raise."""
        path = self.folder / f"failed-{rank}.json"
        text = " ".join(str(error).split()).encode(errors="replace").decode() or type(error).__name__
        try:
            if self.folder.parent.is_dir() and not path.exists():
                self.folder.mkdir(exist_ok=True)
                write_json(path, {"rank": rank, "reason": text})
        except OSError:
            return

    def other_rank_failure(self, rank: int) -> str | None:
        """The failure that another rank has written down, in words; None: none has."""
        for path in sorted(self.folder.glob("failed-*.json")):
            try:
                data = read_checked(path, FailureFile)
            except RunFolderError:
                continue
            if data["rank"] != rank:
                return f"rank {data['rank']} failed: {data['reason']}"
        return None

    def clear_failures(self) -> None:
        """Remove the failures of an earlier session."""
        for path in self.folder.glob("failed-*.json"):
            path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove all files of checkpoints, and the folder if it is empty then."""
        for pattern in (
            "*.safetensors",
            "*.json",
            ".*.safetensors.*",
            ".*.json.*",
        ):  # the last two: what a kill left half-written
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()


class _Damaged(Exception):
    """A checkpoint file that cannot be trusted."""


def _misfit(words: Mapping[str, Tensor], counts: Mapping[str, Sequence[int]]) -> str | None:
    for key, value in words.items():
        if value.shape[1] != len(counts.get(key.partition("/")[0], ())):
            return f"{shown(key)} holds {value.shape[1]} groups, of which no counts stand there"
        if not bool(torch.isfinite(without_neutral(key, value)).all()):
            return f"{shown(key)} holds NaN or Inf"
    return None


def _checksum(head: Mapping[str, Any], words: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    for key in sorted(words):
        digest.update(f"{key} {tuple(words[key].shape)} {words[key].dtype}".encode())
        digest.update(words[key].contiguous().numpy().data)
    return digest.hexdigest()


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    named = []
    for name in sorted(theirs.keys() | ours.keys()):
        one, other = theirs.get(name), ours.get(name)
        if one != other:
            named.append(f"another {name} ({_short(one)}, now {_short(other)})")
    return ", ".join(named)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return shown(text)[1:-1] if len(text) <= 40 else f"{text[:12]}..."
