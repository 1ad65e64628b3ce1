"""The text of a recovery training, and the text on which its effect is measured: never the same.

A file is split by text: every fifth is held out whole; of a file that is one text, the last fifth. A training text that shares 16 tokens
in a row with anything that measures (the held-out part, the judging half of the run's calibration text) is left out whole, so that
neither a second copy nor the same file given as calibration text is trained on. Of a file that is one text, such documents are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from fairprune_framework.calibration.text import Calibration, read_documents
from fairprune_framework.errors import UserError
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.recovery.options import Options

Document = tuple[int, ...]
Part = tuple[int, Document]
"""A document, with the text that it is a part of."""
LONGEST = 256
"""Tokens of a training document: longer texts are cut."""
HELD_OUT = 5
"""One text in so many is held out."""
SHARED = 16
"""Tokens in a row that make a document a copy of another."""


@dataclass(frozen=True, kw_only=True)
class RecoveryText:
    """What is trained on, and what is held out of it."""

    source: str
    training: tuple[Document, ...]
    heldout: tuple[Document, ...]
    """Empty where the training text is calibration text: its judging half is what measures."""
    texts: tuple[int, ...]
    """Of each held-out document the text that it is a part of."""
    left_out: int
    """Documents of texts that measure, or are copies of them."""

    @property
    def tokens(self) -> int:
        """That can be trained on in one pass."""
        return sum(map(len, self.training))


def read(options: Options, encoder: Encoder, calibration: Calibration) -> RecoveryText:
    """Read and split the text.

    Args:
        calibration: of the run.

    Raises:
        UserError: as the reader of calibration text; a text without enough documents; or one that does not fill a step.
    """
    longest = min(LONGEST, options.batch_tokens, encoder.limit or LONGEST)
    if options.text is None:
        source = f"scoring half of the calibration text ({calibration.source})"
        training = [(place, document[:longest]) for place, document in enumerate(calibration.scoring)]
        heldout: list[tuple[int, Document]] = []
    else:
        source = options.text
        texts = [text for text in read_documents(options.text, encoder, longest, "training text") if text]
        if (count := sum(map(len, texts))) < 4:
            raise UserError(
                f"the training text {options.text} yields {count} documents of at most {longest} tokens; at least 4 are needed"
            )
        training, heldout = split(texts)
    kept = without_copies(training, [*calibration.judging, *(document for _, document in heldout)])
    found = RecoveryText(
        source=source,
        training=tuple(kept),
        heldout=tuple(document for _, document in heldout),
        texts=tuple(text for text, _ in heldout),
        left_out=len(training) - len(kept),
    )
    if found.tokens < options.batch_tokens:
        raise UserError(
            f"{source}: {found.tokens} tokens can be trained on, less than one step takes ({found.left_out} documents are part of what "
            f"measures): give more text, or --batch-tokens below {options.batch_tokens}"
        )
    return found


def split(texts: Sequence[Sequence[Document]]) -> tuple[list[Part], list[Part]]:
    """What is trained on and what is held out, as (text, document); in a file that is one text each document counts as a text.

    Args:
        texts: the documents of each text.
    """
    if len(texts) == 1:
        texts = [[document] for document in texts[0]]
        chosen = set(range(len(texts) - max(1, len(texts) // HELD_OUT), len(texts)))
    else:
        chosen = set(range(HELD_OUT - 1, len(texts), HELD_OUT)) or {len(texts) - 1}
    parts = [(place, document) for place, text in enumerate(texts) for document in text]
    return [part for part in parts if part[0] not in chosen], [part for part in parts if part[0] in chosen]


def without_copies(training: Sequence[Part], measuring: Iterable[Document]) -> list[Document]:
    """The documents of texts that share no `SHARED` tokens in a row with a text that measures."""
    known = {window for document in measuring for window in _windows(document)}
    copies = {text for text, document in training if any(window in known for window in _windows(document))}
    return [document for text, document in training if text not in copies]


def _windows(document: Document) -> Iterator[Document]:
    return (document[start : start + SHARED] for start in range(max(1, len(document) - SHARED + 1)))
