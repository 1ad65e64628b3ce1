"""One model as it is judged, masked or not: every measurement of it, each kept as a cell.

The key of a cell holds the digest of all weights and the mask, so that a measurement is found again whatever run asks for it, and two
models are taken for one only if their weights are equal bit by bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import cached_property
from typing import Any

import torch
from torch import nn

from fairprune_framework.api.types import Tap
from fairprune_framework.auditing.batches import compose, composition_hash
from fairprune_framework.contrasts.alignment import AlignedContrast
from fairprune_framework.evaluation.cache import Cells, model_key
from fairprune_framework.evaluation.fixed_text import TextLoss, text_loss, windows_of
from fairprune_framework.evaluation.metrics.contrasts import TAPS, ContrastMeasure, measure_contrasts
from fairprune_framework.evaluation.metrics.generation import BEAMS, NEW_TOKENS, Continuation, continue_prompts
from fairprune_framework.evaluation.metrics.sentences import SentenceMeasure, measure_sentences
from fairprune_framework.evaluation.tasks.data import LOCAL, TaskSettings, files_of
from fairprune_framework.evaluation.tasks.harness import TaskResult, language_model, run_task
from fairprune_framework.models.architecture import Architecture
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.surgery.masking import masked
from fairprune_framework.utilities.files import digest, file_digest
from fairprune_framework.utilities.progress import Notify, bar, silent
from fairprune_framework.utilities.versions import versions


class Subject:
    """A model in memory, with units masked where some are given."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        architecture: Architecture,
        cells: Cells,
        *,
        encoder: Encoder | None = None,
        units: Mapping[str, Sequence[int]] | None = None,
        factor: float = 0.0,
        budget: int = 512,
        notify: Notify = silent,
        weights: str | None = None,
    ) -> None:
        self.model, self.tokenizer, self.architecture, self.cells = model, tokenizer, architecture, cells
        self.encoder = encoder or Encoder(tokenizer)
        self.units, self.factor, self.budget, self.notify = dict(units or {}), factor, budget, notify
        self._weights = weights

    def masked_by(self, units: Mapping[str, Sequence[int]], factor: float = 0.0) -> Subject:
        """The same model with units masked; its weights are not looked at again."""
        return Subject(
            self.model,
            self.tokenizer,
            self.architecture,
            self.cells,
            encoder=self.encoder,
            units=units,
            factor=factor,
            budget=self.budget,
            notify=self.notify,
            weights=self.weights,
        )

    @property
    def weights(self) -> str:
        """Digest of all weights."""
        if self._weights is None:
            self._weights = weights_digest(self.model)
        return self._weights

    @cached_property
    def key(self) -> dict[str, Any]:
        """What every cell of this subject is keyed by."""
        found = versions()
        return {
            "model": model_key(self.weights, self.units, self.factor, str(next(self.model.parameters()).dtype)),
            "device": next(self.model.parameters()).device.type,
            "micro_batch_tokens": self.budget,
            "versions": {name: found[name] for name in ("fairprune_framework", "torch", "transformers", "lm_eval")},
        }

    def change(self) -> AbstractContextManager[None]:
        """The mask, where there is one."""
        if any(len(chosen) for chosen in self.units.values()):
            return masked(self.model, self.architecture, self.units, self.factor)
        return nullcontext()

    def _cell(self, name: str, key: Mapping[str, Any], make: Callable[[], Any]) -> Any:
        def made() -> Any:
            self.notify(f"measuring {name}")
            with self.change():
                return make()

        return made() if self.cells.folder is None else self.cells.get(name, {**self.key, **key}, made)

    # -- measurements ---------------------------------------------------------------------------------------------------

    def contrasts(
        self, name: str, aligned: Sequence[AlignedContrast], values: Mapping[str, int], taps: frozenset[Tap] = TAPS
    ) -> list[ContrastMeasure]:
        """Next-token divergence and activation difference of every contrast."""
        batches = list(compose(aligned, values, self.budget))

        def make() -> Any:
            with bar(f"{name}, contrasts", len(aligned), "contrasts") as advance:
                return [asdict(one) for one in measure_contrasts(self.model, self.architecture, batches, advance, taps)]

        key = {"composition": composition_hash(batches), "texts": _texts(aligned), "taps": sorted(taps)}
        found = self._cell(f"{name}-contrasts", key, make)
        return [ContrastMeasure(**{**one, "by_layer": tuple(one["by_layer"])}) for one in found]

    def sentences(self, name: str, aligned: Sequence[AlignedContrast], start: int | None = None) -> list[SentenceMeasure]:
        """log p of every variant."""

        def make() -> Any:
            with bar(f"{name}, sentences", sum(len(one.variants) for one in aligned), "texts") as advance:
                return [asdict(one) for one in measure_sentences(self.model, aligned, start, self.budget, advance)]

        found = self._cell(f"{name}-sentences", {"texts": _texts(aligned), "start": start}, make)
        return [SentenceMeasure(id=one["id"], log_probabilities=tuple(one["log_probabilities"])) for one in found]

    def task(self, settings: TaskSettings) -> list[TaskResult]:
        """A task of lm-eval, a group or a tag."""
        key: dict[str, Any] = {"limit": settings.limit, "chat_template": settings.chat_template}
        if settings.data is not None and settings.task in LOCAL:
            files = files_of(LOCAL[settings.task], settings.data)
            key["data"] = digest([file_digest(path) for path in files])

        def make() -> Any:
            lm = language_model(self.model, self.tokenizer, self.budget)
            return [result.to_json() for result in run_task(lm, settings)]

        return [TaskResult.from_json(one) for one in self._cell(settings.task, key, make)]

    def text(self, name: str, ids: Sequence[int], window: int) -> TextLoss:
        """Loss on a fixed text, cut into windows."""
        pieces = windows_of(ids, window)
        key = {"text": digest([list(piece) for piece in pieces])}
        found = self._cell(name, key, lambda: asdict(text_loss(self.model, pieces, self.budget)))
        return TextLoss(nll=tuple(found["nll"]), tokens=tuple(found["tokens"]))

    def documents(self, name: str, documents: Sequence[Sequence[int]]) -> TextLoss:
        """Loss on documents, each with its own context."""
        key = {"text": digest([list(document) for document in documents])}
        found = self._cell(name, key, lambda: asdict(text_loss(self.model, documents, self.budget)))
        return TextLoss(nll=tuple(found["nll"]), tokens=tuple(found["tokens"]))

    def generations(self, prompts: Sequence[str]) -> list[Continuation]:
        """The continuation of each prompt."""
        key = {
            "prompts": list(prompts),
            "wrapped": [self.encoder.wrapped(text) for text in prompts],
            "settings": [BEAMS, NEW_TOKENS, "tokens"],
        }

        def make() -> Any:
            return [asdict(one) for one in continue_prompts(self.model, self.tokenizer, self.encoder, list(prompts))]

        return [Continuation(one["text"], tuple(one["ends"])) for one in self._cell("generations", key, make)]


def _texts(aligned: Sequence[AlignedContrast]) -> str:
    return digest([[one.id, [list(tokens.ids) for tokens in one.variants], one.split, one.control] for one in aligned])


@torch.no_grad()
def weights_digest(model: nn.Module) -> str:
    """sha256 over names, dtypes, shapes and all values; unlike a fingerprint it tells any two sets of weights apart."""
    found = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        found.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        flat = parameter.detach().reshape(-1).cpu().contiguous()
        found.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return found.hexdigest()
