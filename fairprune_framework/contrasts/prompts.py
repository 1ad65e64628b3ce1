"""The prompt set of a run: its contrasts, their tokens under the model's tokenizer, and the sets that judge alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from fairprune_framework.contrasts.alignment import AlignedContrast, align_all, aligned
from fairprune_framework.contrasts.schema import Contrast
from fairprune_framework.contrasts.sentences import sentences_of
from fairprune_framework.contrasts.sets import Alignment, ContrastSet, check_alignment
from fairprune_framework.contrasts.splits import refuse_shared
from fairprune_framework.errors import UserError
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.utilities.wording import number_of


@dataclass(frozen=True, kw_only=True)
class JudgingSet:
    """A prompt set that judges before and after, and chooses nothing."""

    contrasts: tuple[Contrast, ...]
    aligned: tuple[AlignedContrast, ...]
    sha256: str
    """Of its source."""
    notes: tuple[str, ...] = ()
    """What of it was left out or skipped, counted."""


class PromptSet:
    """Contrasts of a source, read when first asked for; a large set is gone through again and again, and not held in memory.

    Args:
        source: a name, a file or contrasts in memory, as `readers.read` takes it.
        encoder: gives the tokenizer; called when tokens are asked for.
        columns, bad, split, seed: as `ContrastSet`.
        judging: name -> source of each set that judges alone.
    """

    def __init__(
        self,
        source: Any,
        encoder: Callable[[], Encoder],
        *,
        columns: Mapping[str, str] | None = None,
        bad: Literal["error", "skip"] = "error",
        split: str = "keep",
        seed: int = 0,
        judging: Mapping[str, str] | None = None,
    ) -> None:
        self._source, self._encoder = source, encoder
        self._columns, self._bad, self._split, self._seed = columns, bad, split, seed
        self._judging = dict(judging or {})
        self._judged: dict[str, JudgingSet] | None = None

    @cached_property
    def contrasts(self) -> ContrastSet:
        """The contrasts with their splits, checked as a whole.

        Raises:
            PromptError, UserError: as `readers.read` and `splits.apply_split`.
        """
        if self._source is None:
            raise UserError("no prompt set is named: give a file, a data set or 'builtin:en' with --prompts")
        return ContrastSet(self._source, columns=self._columns, bad=self._bad, split=self._split, seed=self._seed)

    @cached_property
    def alignment(self) -> Alignment:
        """What the set is under the tokenizer: counts, and what cannot be used."""
        return check_alignment(self.contrasts, self._encoder(), self._bad)

    @cached_property
    def aligned(self) -> tuple[AlignedContrast, ...]:
        """The usable demographic contrasts and controls under the tokenizer, in memory."""
        return tuple(contrast for contrast in self._every_aligned if not contrast.legitimate)

    @cached_property
    def legitimate(self) -> tuple[AlignedContrast, ...]:
        """The usable legitimate differences under the tokenizer: those of `select` feed the stream of that name; no divergence is taken of
        any."""
        return tuple(contrast for contrast in self._every_aligned if contrast.legitimate)

    @cached_property
    def _every_aligned(self) -> tuple[AlignedContrast, ...]:
        return tuple(aligned(self.contrasts, self._encoder(), self.contrasts.vocabularies, self._bad))

    @cached_property
    def texts(self) -> dict[str, Contrast]:
        """id -> contrast, in memory, in the order of the set."""
        return {contrast.id: contrast for contrast in self.contrasts}

    @cached_property
    def sentences(self) -> dict[str, str]:
        """id -> the sentence that a contrast stands in, of those that stand in one, in memory."""
        return sentences_of(self.contrasts)

    def stored_at(self, path: Path) -> PromptSet:
        """The same set as it lies in a run folder: what could be used of it, with its splits. It needs the source no more."""
        stored = PromptSet(path, self._encoder, judging=self._judging)
        if "alignment" in self.__dict__:
            stored.alignment = replace(self.alignment, skipped=())
        return stored

    @property
    def values(self) -> dict[str, int]:
        """category -> number of attribute values, `other` included."""
        return self.contrasts.values

    @property
    def categories(self) -> list[str]:
        """Categories of the contrasts that may feed scores."""
        return sorted(self.alignment.feeds["contrasts"].categories)

    def judged(self, *, choosing: bool) -> dict[str, JudgingSet]:
        """name -> set that judges alone.

        Args:
            choosing: neurons are chosen on this set; then nothing may be shared with it.

        Raises:
            PromptError: a set shares a template or a text with what chooses neurons.
        """
        if self._judged is None:
            self._judged = {name: self._judging_set(name, source, choosing) for name, source in self._judging.items()}
        return self._judged

    def _judging_set(self, name: str, source: str, choosing: bool) -> JudgingSet:
        contrasts = ContrastSet(source, bad=self._bad)
        every: Sequence[Contrast] = list(contrasts)
        if choosing:
            refuse_shared(list(self.contrasts), every, name)
        tokens, unusable = align_all(every, self._encoder(), self._bad)
        kept = tuple(contrast for contrast in tokens if not contrast.legitimate)
        skipped = [*contrasts.skipped, *unusable]
        notes = list(contrasts.notes)
        if skipped:
            notes.append(f"{number_of(len(skipped), 'contrast')} skipped. The first: {': '.join(skipped[0])}")
        return JudgingSet(contrasts=tuple(every), aligned=kept, sha256=contrasts.sha256, notes=tuple(notes))
