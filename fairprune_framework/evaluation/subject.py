"""One model as it is judged, masked or not: every measurement of it, each kept in a cache.

The key of a measurement holds the digest of all weights and the mask, so that it is found again whatever run asks for it, and two models
are taken for one only if their weights are equal bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import cached_property
from typing import Any

import torch
from torch import nn

from fairprune_framework.api.types import Scaling, Tap
from fairprune_framework.auditing.batches import compose, composition_hash
from fairprune_framework.contrasts.alignment import AlignedContrast
from fairprune_framework.evaluation.cache import MeasurementCache, model_key
from fairprune_framework.evaluation.metrics.contrasts import TAPS, ContrastMeasure, measure_contrasts
from fairprune_framework.evaluation.metrics.generation import BEAMS, NEW_TOKENS, Continuation, continue_prompts
from fairprune_framework.evaluation.metrics.movement import MovementReader
from fairprune_framework.evaluation.metrics.next_token import NextTokenReader, token_valences
from fairprune_framework.evaluation.metrics.outputs import OutputReader
from fairprune_framework.evaluation.metrics.perplexity import TextLoss, text_loss, windows_of
from fairprune_framework.evaluation.metrics.samples import SAMPLES, TOKENS, compounds, sampled
from fairprune_framework.evaluation.metrics.sentences import SentenceMeasure, measure_sentences
from fairprune_framework.evaluation.tasks.data import LOCAL, TaskSettings, files_of, place_of
from fairprune_framework.evaluation.tasks.harness import language_model, run_task
from fairprune_framework.evaluation.tasks.own import questions_hash, run_own
from fairprune_framework.evaluation.tasks.registry import OWN
from fairprune_framework.evaluation.tasks.result import TaskResult
from fairprune_framework.models.architecture import Architecture
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.models.weights import weights_digest
from fairprune_framework.surgery.masking import masked
from fairprune_framework.utilities.files import digest, file_digest
from fairprune_framework.utilities.progress import Notify, bar, silent
from fairprune_framework.utilities.versions import versions


class Subject:
    """A model in memory, with units masked where some are given.

    Args:
        max_tokens: padded tokens per forward.
        share_up_to: contrasts whose texts are at most so long are computed with shared prefixes: see `prefix_sharing`.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        architecture: Architecture,
        cache: MeasurementCache,
        *,
        encoder: Encoder | None = None,
        units: Mapping[str, Sequence[int]] | None = None,
        factor: Scaling = 0.0,
        max_tokens: int = 512,
        share_up_to: int = 0,
        notify: Notify = silent,
        weights: str | None = None,
    ) -> None:
        self.model, self.tokenizer, self.architecture, self.cache = model, tokenizer, architecture, cache
        self.encoder = encoder or Encoder(tokenizer)
        self.units, self.factor, self.notify = dict(units or {}), factor, notify
        self.max_tokens, self.share_up_to = max_tokens, share_up_to
        self._weights = weights

    def masked_by(self, units: Mapping[str, Sequence[int]], factor: Scaling = 0.0) -> Subject:
        """The same model with units masked; its weights are not looked at again."""
        return Subject(
            self.model,
            self.tokenizer,
            self.architecture,
            self.cache,
            encoder=self.encoder,
            units=units,
            factor=factor,
            max_tokens=self.max_tokens,
            share_up_to=self.share_up_to,
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
        """What every measurement of this subject is keyed by."""
        known = versions()
        return {
            "model": model_key(self.weights, self.units, self.factor, str(next(self.model.parameters()).dtype)),
            "device": next(self.model.parameters()).device.type,
            "micro_batch_tokens": self.max_tokens,
            "versions": {name: known[name] for name in ("fairprune_framework", "torch", "transformers", "lm_eval")},
        }

    def change(self) -> AbstractContextManager[None]:
        """The mask; without units it changes nothing."""
        return masked(self.model, self.architecture, self.units, self.factor)

    def _kept(self, name: str, key: Mapping[str, Any], make: Callable[[], Any]) -> Any:
        def made() -> Any:
            self.notify(f"measuring {name}")
            with self.change():
                return make()

        return made() if self.cache.folder is None else self.cache.get(name, {**self.key, **key}, made)

    # -- measurements ---------------------------------------------------------------------------------------------------

    def contrasts(
        self,
        name: str,
        aligned: Sequence[AlignedContrast],
        values: Mapping[str, int],
        taps: frozenset[Tap] = TAPS,
        movements: MovementReader | None = None,
        outputs: OutputReader | None = None,
    ) -> list[ContrastMeasure]:
        """All that one forward of its texts says of every contrast: next-token divergence, activation difference, legitimate margin,
        valences and log-probabilities.

        Args:
            movements: reads its neurons on the way; nothing, where the measurement was kept.
            outputs: keeps the outputs of its contrasts on the way; of none, where the measurement was kept.
        """
        batches = list(compose(aligned, values, self.max_tokens, share_up_to=self.share_up_to))
        reader = NextTokenReader(aligned, self._valences)

        def make() -> Any:
            with bar(f"{name}, contrasts", len(aligned), "contrasts") as advance:
                measured = measure_contrasts(
                    self.model,
                    self.architecture,
                    batches,
                    advance,
                    taps,
                    reader,
                    sentences=True,
                    movements=movements,
                    outputs=outputs,
                )
            return [asdict(one) for one in measured]

        key = {"composition": composition_hash(batches), "texts": _texts(aligned), "taps": sorted(taps), "sentences": "shared"}
        key["right"] = digest([[one.id, list(one.right)] for one in aligned if one.right])
        lists = ("by_layer", "valence", "log_probabilities", "shared_log_probabilities")
        return [
            ContrastMeasure(**{**one, **{column: tuple(one[column]) for column in lists}})
            for one in self._kept(f"{name}-contrasts", key, make)
        ]

    def see(self, outputs: OutputReader, aligned: Sequence[AlignedContrast], values: Mapping[str, int]) -> None:
        """Compute contrasts for their outputs alone."""
        batches = list(compose(aligned, values, self.max_tokens, share_up_to=self.share_up_to))
        with self.change():
            measure_contrasts(self.model, self.architecture, batches, taps=frozenset(), outputs=outputs)

    @cached_property
    def _valences(self) -> torch.Tensor:
        width = self.model.get_output_embeddings().weight.shape[0]  # type: ignore[operator]
        return token_valences(self.tokenizer, width)

    def sentences(self, name: str, aligned: Sequence[AlignedContrast], start: int | None = None) -> list[SentenceMeasure]:
        """log p of every variant, by itself; `contrasts` gives it as well, without `start`."""

        def make() -> Any:
            with bar(f"{name}, sentences", sum(len(one.variants) for one in aligned), "texts") as advance:
                return [asdict(one) for one in measure_sentences(self.model, aligned, start, self.max_tokens, advance)]

        measured = self._kept(f"{name}-sentences", {"texts": _texts(aligned), "start": start, "whole": True}, make)
        lists = ("log_probabilities", "shared")
        return [SentenceMeasure(**{**one, **{column: tuple(one[column]) for column in lists}}) for one in measured]

    def task(self, settings: TaskSettings) -> list[TaskResult]:
        """One of our own tasks, or a task of lm-eval, a group or a tag."""
        key: dict[str, Any] = {"limit": settings.limit, "chat_template": settings.chat_template}
        own = OWN.get(settings.task)
        if own is not None:
            read = own.read(None if settings.data is None else place_of(settings.task, settings.data))
            key |= {"questions": questions_hash(read.questions), "version": own.version}
        elif settings.data is not None and settings.task in LOCAL:
            files = files_of(LOCAL[settings.task], settings.data)
            key["data"] = digest([file_digest(path) for path in files])

        def make() -> Any:
            if own is not None:
                return [run_own(settings.task, own, read, self.model, self.encoder, settings).to_json()]
            lm = language_model(self.model, self.tokenizer, self.max_tokens)
            return [result.to_json() for result in run_task(lm, settings)]

        return [TaskResult.from_json(one) for one in self._kept(settings.task, key, make)]

    def text(self, name: str, ids: Sequence[int], window: int) -> TextLoss:
        """Loss on a fixed text, cut into windows."""
        windows = windows_of(ids, window)
        key = {"text": digest([list(each) for each in windows])}
        loss = self._kept(name, key, lambda: asdict(text_loss(self.model, windows, self.max_tokens)))
        return TextLoss(nll=tuple(loss["nll"]), tokens=tuple(loss["tokens"]))

    def documents(self, name: str, documents: Sequence[Sequence[int]]) -> TextLoss:
        """Loss on documents, each with its own context."""
        key = {"text": digest([list(document) for document in documents])}
        loss = self._kept(name, key, lambda: asdict(text_loss(self.model, documents, self.max_tokens)))
        return TextLoss(nll=tuple(loss["nll"]), tokens=tuple(loss["tokens"]))

    def sentiments(self, aligned: Sequence[AlignedContrast], seed: int) -> dict[str, list[list[float]]]:
        """Contrast -> of each variant the compound sentiments of its sampled continuations."""

        def make() -> Any:
            with bar("continuations", sum(len(one.variants) for one in aligned), "texts") as advance:
                return compounds(self.tokenizer, sampled(self.model, aligned, self.tokenizer.eos_token_id, seed, advance))

        key = {
            "texts": _texts(aligned),
            "templates": [one.template_id for one in aligned],
            "seed": seed,
            "size": [SAMPLES, TOKENS],
        }
        return dict(zip([one.id for one in aligned], self._kept("continuations", key, make), strict=True))

    def generations(self, prompts: Sequence[str]) -> list[Continuation]:
        """The continuation of each prompt."""
        key = {
            "prompts": list(prompts),
            "wrapped": [self.encoder.wrapped(text) for text in prompts],
            "settings": [BEAMS, NEW_TOKENS, "tokens"],
        }

        def make() -> Any:
            return [asdict(one) for one in continue_prompts(self.model, self.tokenizer, self.encoder, list(prompts))]

        return [Continuation(one["text"], tuple(one["ends"])) for one in self._kept("generations", key, make)]


def _texts(aligned: Sequence[AlignedContrast]) -> str:
    return digest([[one.id, [list(tokens.ids) for tokens in one.variants], one.split, one.control] for one in aligned])
