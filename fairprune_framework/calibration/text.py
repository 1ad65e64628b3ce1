"""Text for importance scores and for the cost of a plan: built-in passages, a user's file, or text sampled from the model.

Even documents are for scores and probes, odd ones for judging; the halves are never mixed. Stored as `calibration.jsonl`, so that a
run can be repeated on the same text.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn

from fairprune_framework.calibration.builtin import BUILTIN, text_file
from fairprune_framework.contrasts.alignment import AlignedContrast, Tokens
from fairprune_framework.errors import RunFolderError, UserError
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.models.loaded import LoadedModel
from fairprune_framework.recipes.recipe import Recipe
from fairprune_framework.utilities.files import digest, parse_json, write_text
from fairprune_framework.utilities.progress import bar
from fairprune_framework.utilities.schemas import Count, Schema, check

FILE = "calibration.jsonl"
"""Its name in a run folder."""
RARE = 0.25
"""Maximum share of documents with a rare token."""


class CalibrationLine(Schema):
    """A line of `calibration.jsonl`."""

    ids: Annotated[list[Count], Field(min_length=1)]
    source: str


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Documents as token ids."""

    documents: tuple[tuple[int, ...], ...]
    source: str

    @property
    def hash(self) -> str:
        """sha256 of all token ids."""
        return digest(self.documents)

    @property
    def scoring(self) -> tuple[tuple[int, ...], ...]:
        """The even documents: for scores and probes."""
        return self.documents[0::2]

    @property
    def judging(self) -> tuple[tuple[int, ...], ...]:
        """The odd documents: for the guard and the evaluation."""
        return self.documents[1::2]

    def as_contrasts(self) -> list[AlignedContrast]:
        """The scoring half as one-variant "contrasts" without an attribute, the input format of the audit.

        A token is rare if at most a quarter of these documents contain it.
        """
        holding = Counter(token for ids in self.scoring for token in set(ids))
        most = max(1, int(RARE * len(self.scoring)))
        return [
            AlignedContrast(
                id=f"calibration/{2 * i}",
                category="",
                template_id="",
                control=False,
                split=None,
                variants=(Tokens(ids=ids, start=0, end=0, rare=tuple(i for i, t in enumerate(ids) if holding[t] <= most)),),
                attributes=(0,),
            )
            for i, ids in enumerate(self.scoring)
        ]

    def save(self, path: Path, tokenizer: Any) -> None:
        """Write `calibration.jsonl`: id, half, token ids, and the readable text."""
        lines = [
            {"id": i, "half": "judge" if i % 2 else "score", "source": self.source, "ids": ids, "text": tokenizer.decode(ids)}
            for i, ids in enumerate(self.documents)
        ]
        write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read `calibration.jsonl`.

        Raises:
            RunFolderError: it is absent, or a line is not what `save` wrote.
        """
        rows = []
        try:
            for number, line in enumerate(path.read_text(encoding="utf-8").rstrip("\n").split("\n"), 1):
                rows.append(parse_json(line))
                check(rows[-1], CalibrationLine, f"line {number} of {path}")
        except (OSError, ValueError) as error:
            raise error if isinstance(error, RunFolderError) else RunFolderError(f"cannot read {path}: {error}") from error
        return cls(documents=tuple(tuple(row["ids"]) for row in rows), source=rows[0]["source"])


def made(recipe: Recipe, loaded: LoadedModel, notify: Callable[[str], None]) -> Calibration:
    """The text that a recipe asks for: of a file, or sampled from the model."""
    if recipe.calibration is not None:
        return from_file(recipe.calibration, loaded.encoder, recipe.calibration_tokens, recipe.calibration_documents)
    notify(f"sampling {recipe.calibration_documents} calibration documents of {recipe.calibration_tokens} tokens")
    tokens = min(recipe.calibration_tokens, loaded.encoder.limit or recipe.calibration_tokens)
    return sample(loaded.model, loaded.encoder, recipe.calibration_documents, tokens, recipe.seed)


def from_file(name: str, encoder: Encoder, tokens: int, documents: int) -> Calibration:
    """Read a .txt file (one text) or a .jsonl file (field `text`), split into documents of at most `tokens` tokens; only a remainder
    of a document of fewer than two tokens is dropped, since it has no next token to predict. Or the first `documents` passages of
    `builtin:<language>`, each truncated to `tokens`. Each document begins as the tokenizer begins every text (BOS).

    Raises:
        UserError: no such text or file, not UTF-8, a line without `text`, a token that the model lacks, or fewer than four documents.
    """
    tokens = min(tokens, encoder.limit or tokens)
    if name.startswith(BUILTIN):
        passages = _texts_of(text_file(name), "calibration file")[:documents]
        return Calibration(documents=tuple(tuple(encoder.document(text)[:tokens]) for text in passages), source=name)
    parts = [document for text in read_documents(name, encoder, tokens) for document in text]
    path = Path(name)
    if len(parts) < 4:
        raise UserError(f"the calibration file {path} yields {len(parts)} documents of {tokens} tokens; at least 4 are needed")
    return Calibration(documents=tuple(parts), source=path.name)


def read_documents(name: str, encoder: Encoder, tokens: int, what: str = "calibration file") -> list[list[tuple[int, ...]]]:
    """Of each text of a .txt (one text), .jsonl (field `text`) or built-in file its documents of at most `tokens` tokens, as
    `from_file` cuts them.

    Args:
        what: the file is, for messages.

    Raises:
        UserError: as `from_file`, but for the number of documents.
    """
    opening = encoder.opening
    step = max(tokens - len(opening), 1)
    found: list[list[tuple[int, ...]]] = []
    for text in _texts_of(text_file(name), what):
        ids = encoder.document(text)[len(opening) :] if text.strip() else []
        cut = [(*opening, *ids[i : i + step]) for i in range(0, len(ids), step)]
        found.append([document for document in cut if len(document) > 1])
    return found


def _texts_of(path: Path, what: str) -> list[str]:
    if not path.is_file():
        raise UserError(f"there is no {what} {path}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"the {what} {path} is not UTF-8: {error}") from error
    if path.suffix != ".jsonl":
        return [text]
    texts = []
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: JSON may contain a literal U+2028
        if not line.strip():
            continue
        try:
            value = parse_json(line)["text"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}, line {number}: expected an object with the field 'text'") from error
        if not isinstance(value, str):
            raise UserError(f"{path}, line {number}: the field 'text' must be a string. Got {value!r} instead.")
        texts.append(value)
    return texts


@torch.no_grad()
def sample(model: nn.Module, encoder: Encoder, documents: int, tokens: int, seed: int) -> Calibration:
    """Sample text from the model at temperature 1, without top-k or top-p, in one batch.

    Each document begins as the tokenizer begins every text; where it puts nothing there, the first token follows BOS (or the end of a
    text), which is then left off. Rows of a padded embedding that are no tokens are never drawn. An end-of-text token does not end a
    document: the next text of the model follows.

    Raises:
        UserError: there is no token to begin with.
    """
    from transformers import GenerationConfig, StoppingCriteriaList

    text_config: Any = model.config
    text_config = text_config.get_text_config()
    tokenizer, opening = encoder.tokenizer, encoder.opening
    begin = next((i for i in (tokenizer.bos_token_id, text_config.bos_token_id, tokenizer.eos_token_id) if i is not None), None)
    if begin is None and not opening:
        raise UserError("the tokenizer has no BOS or EOS token to sample from: pass calibration text with --calibration FILE")
    start = torch.tensor([opening or (begin,)] * documents, device=next(model.parameters()).device)
    new = tokens - len(opening)
    rows = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
    config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=new,
        min_new_tokens=None,
        eos_token_id=None,
        pad_token_id=start[0, 0].item(),
        suppress_tokens=list(range(len(tokenizer), rows)) or None,
    )
    generation, model.generation_config = model.generation_config, config  # without the model's own defaults
    try:
        with torch.random.fork_rng(devices=[start.device] if start.device.type == "cuda" else []):
            torch.manual_seed(seed)
            with bar("sampling text", new, "steps") as advance:

                def count(ids: torch.Tensor, scores: Any, **options: Any) -> torch.Tensor:
                    advance(1)
                    return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

                options = {
                    "attention_mask": torch.ones_like(start),
                    "generation_config": config,
                    "stopping_criteria": StoppingCriteriaList([count]),
                }
                ids = model.generate(start, **options)  # type: ignore[operator]
    finally:
        model.generation_config = generation
    kept = ids if opening else ids[:, 1:]
    return Calibration(documents=tuple(tuple(row) for row in kept.tolist()), source="sampled")


def padded(documents: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (B, T) padded on the right with 0, and the mask (B, T)."""
    width = max(map(len, documents))
    ids = torch.zeros((len(documents), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, document in enumerate(documents):
        ids[row, : len(document)] = torch.tensor(document)
        mask[row, : len(document)] = 1
    return ids, mask
