"""The input of an audit: contrasts and calibration text, window by window, in memory or in the files of a run folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairprune_framework.api.types import Stream
from fairprune_framework.auditing.batches import WINDOW
from fairprune_framework.auditing.distributed.completed import CompletedBatches
from fairprune_framework.auditing.statistics import (
    CALIBRATION,
    CONTRASTS,
    CONTROLS,
    LEGITIMATE,
    OF_PROMPTS,
    Statistics,
)
from fairprune_framework.calibration.text import Calibration
from fairprune_framework.contrasts.alignment import AlignedContrast, aligned
from fairprune_framework.contrasts.schema import Contrast, role_of, stream_of
from fairprune_framework.errors import RunFolderError, shown
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.utilities.files import parse_json

Windows = Callable[[Callable[[int], bool]], Iterator[tuple[int, list[AlignedContrast]]]]
"""Gives the wanted windows of a stream in order: called with a test of the window's number, yields (number, contrasts)."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What rank 0 broadcasts before an audit: small, and the same for all ranks."""

    categories: Mapping[Stream, tuple[str, ...]]
    """stream -> its categories, in the order of the result; of calibration text there are none."""
    values: Mapping[str, int]
    """category -> size of its vocabulary of attribute values."""
    sizes: Mapping[Stream, int]
    """stream -> contrasts, or documents, that scores may use."""
    max_tokens: int
    """Padded tokens of a micro-batch, at most."""
    share_up_to: int = 0
    """Longest text of packed rows."""
    tokens: int = 0
    """Of all variants of the demographic contrasts; 0: not counted."""
    done: CompletedBatches = field(default_factory=CompletedBatches)
    session: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What `Open` needs in addition."""
    before: Statistics | None = None
    """What earlier readings of the streams came to."""

    @property
    def largest(self) -> dict[Stream, int]:
        """Stream -> size of the largest vocabulary of its own categories: the rows that statistics keep a value in."""
        return {stream: largest_of(self.values, names) for stream, names in self.categories.items()}


def largest_of(values: Mapping[str, int], categories: Iterable[str]) -> int:
    """Size of the largest vocabulary of some categories; 1 without any."""
    return max((values.get(category, 1) for category in categories), default=1)


Open = Callable[[Job], Mapping[str, Windows]]
"""Returns the windows of each stream, on any rank, from the job."""


@dataclass(frozen=True)
class Held:
    """Aligned contrasts in memory as windows."""

    contrasts: Sequence[AlignedContrast]

    def __call__(self, wanted: Callable[[int], bool]) -> Iterator[tuple[int, list[AlignedContrast]]]:
        for number, first in enumerate(range(0, len(self.contrasts), WINDOW)):
            if wanted(number):
                yield number, list(self.contrasts[first : first + WINDOW])


@dataclass(frozen=True)
class HeldStreams:
    """The streams of an audit whose input is in memory."""

    contrasts: Held
    controls: Held
    calibration: Held
    legitimate: Held = field(default_factory=lambda: Held(()))

    def __call__(self, job: Job) -> Mapping[str, Windows]:
        own = {CONTRASTS: self.contrasts, CONTROLS: self.controls, LEGITIMATE: self.legitimate}
        return {**own, CALIBRATION: self.calibration}


@dataclass(frozen=True)
class FiledWindows:
    """The contrasts of a `contrasts.jsonl` that feed one stream, tokenized window by window."""

    path: Path
    encoder: Encoder
    vocabularies: Mapping[str, tuple[str, ...]]
    stream: Stream = CONTRASTS

    def __call__(self, wanted: Callable[[int], bool]) -> Iterator[tuple[int, list[AlignedContrast]]]:
        seen = 0
        window: list[Contrast] = []
        with self.path.open(encoding="utf-8") as file:
            for line in file:
                data = _parsed(line, self.path)
                if stream_of(role_of(data["control"], data.get("legitimate", False)), data["split"]) != self.stream:
                    continue
                number = seen // WINDOW
                seen += 1
                if wanted(number):
                    window.append(Contrast.from_json(data))
                if window and seen % WINDOW == 0:
                    yield number, list(aligned(window, self.encoder, self.vocabularies))
                    window = []
        if window:
            yield (seen - 1) // WINDOW, list(aligned(window, self.encoder, self.vocabularies))


def _parsed(line: str, path: Path) -> dict[str, Any]:
    try:
        data = parse_json(line)
        if isinstance(data, dict) and {"control", "split"} <= data.keys():
            return data
    except ValueError as error:
        raise RunFolderError(f"{path} is damaged: {error}") from error
    raise RunFolderError(f"{path} is damaged: a line is no contrast. Got {shown(data)} instead.")


@dataclass(frozen=True)
class FiledStreams:
    """The streams of an audit in a run folder that every rank can read."""

    folder: Path
    encoder: Encoder

    def __call__(self, job: Job) -> Mapping[str, Windows]:
        path, vocabularies = self.folder / "contrasts.jsonl", job.facts["vocabularies"]
        streams: dict[str, Windows] = {stream: FiledWindows(path, self.encoder, vocabularies, stream) for stream in OF_PROMPTS}
        if job.sizes[CALIBRATION]:
            streams[CALIBRATION] = Held(Calibration.load(self.folder / "calibration.jsonl").as_contrasts())
        return streams
