"""What models computed during a stage, and the least that they had to: each text once in each model and under each mask.

Seen at the forwards of the text decoder and at the inputs of the head. Work is counted as two operations a weight and token of the
decoder's matrices, of experts those that a token is routed to, without attention scores; a backward pass to the sites as the layers
behind the first; the head for the positions that it was asked for. What is generated token by token is counted apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from fairprune_framework.api.decoders import text_config, text_decoder
from fairprune_framework.api.types import Held
from fairprune_framework.models.head import output_embeddings
from fairprune_framework.utilities.files import digest

State = tuple[str, str, str]
"""Name and dtype of a model, and the mask that is on it: empty for none."""
MOST_TEXTS = 2**17
"""Texts that are remembered; of further ones each counts as new, so that memory does not grow with the prompts. So does each on an
accelerator, which is not waited for to read its token ids."""


class Change:
    """A mask that is on a model: what tells forwards of one text apart."""

    def __init__(self, outer: Change | None, units: Mapping[str, Sequence[int]], factor: Any) -> None:
        self._outer, self._units, self._factor = outer, units, factor

    @cached_property
    def key(self) -> str:
        """Equal for equal masks; empty where nothing is masked."""
        chosen = {site: [int(unit) for unit in units] for site, units in sorted(self._units.items()) if len(units)}
        outer = self._outer.key if self._outer is not None else ""
        if not chosen:
            return outer
        factor: Any
        if isinstance(self._factor, Held):
            factor = {site: [list(unit) for unit in self._factor.means[site]] for site in chosen}
        elif isinstance(self._factor, Mapping):
            factor = {site: [float(one) for one in self._factor[site]] for site in chosen}
        else:
            factor = float(self._factor)
        return digest([outer, chosen, factor])


_changed: ContextVar[Change | None] = ContextVar("changed", default=None)


_uncounted: ContextVar[bool] = ContextVar("uncounted", default=False)


@contextmanager
def uncounted() -> Iterator[None]:
    """Forwards inside the context are no work of a stage: they are timed, as often as there is time for."""
    token = _uncounted.set(True)
    try:
        yield
    finally:
        _uncounted.reset(token)


_backwards: ContextVar[int] = ContextVar("backwards", default=1)


@contextmanager
def backwards(count: int) -> Iterator[None]:
    """Of each forward with a graph inside the context, so many objectives are differentiated."""
    token = _backwards.set(count)
    try:
        yield
    finally:
        _backwards.reset(token)


@contextmanager
def under(units: Mapping[str, Sequence[int]], factor: Any) -> Iterator[None]:
    """Forwards inside the context are of a model with units masked."""
    token = _changed.set(Change(_changed.get(), units, factor))
    try:
        yield
    finally:
        _changed.reset(token)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Weights of a model that take part in one token."""

    decoder: float
    """Of the decoder's matrices, without embeddings."""
    behind: float
    """Of those in the layers behind the first."""
    head: float

    @classmethod
    def of(cls, model: nn.Module) -> Sizes:
        """Count them."""
        decoder, config = text_decoder(model), text_config(model)
        embeddings = {id(each.weight) for each in decoder.modules() if isinstance(each, nn.Embedding)}
        layers = next((each for each in decoder.modules() if isinstance(each, nn.ModuleList) and len(each)), None)
        first = {id(weight) for weight in layers[0].parameters()} if layers is not None else set()
        experts = next(
            (n for name in ("num_local_experts", "num_experts", "n_routed_experts") if (n := getattr(config, name, 0))), 0
        )
        routed = (getattr(config, "num_experts_per_tok", None) or experts) / experts if experts else 1.0
        total = behind = 0.0
        for name, weight in decoder.named_parameters():
            if weight.ndim < 2 or id(weight) in embeddings:
                continue
            active = weight.numel() * (routed if ".experts." in name else 1.0)
            total += active
            behind += active if id(weight) not in first else 0.0
        head = output_embeddings(model)
        return cls(decoder=total, behind=behind, head=float(head.weight.numel()) if head is not None else 0.0)


class Ledger:
    """Counts of one stage."""

    def __init__(self) -> None:
        self.forwards = 0
        self.tokens = 0
        """Computed, with padding."""
        self.least_tokens = 0
        """Of each text once in each model and under each mask; of packed rows, each row once."""
        self.backward_tokens = 0
        """Of forwards whose gradients were asked for, once for each objective."""
        self.logits = 0
        """Positions that the head saw."""
        self.generated = 0
        """Tokens of forwards that go on from kept keys and values, rows of beams included."""
        self.least_flop = 0.0
        self.times: Counter[tuple[State, int]] = Counter()
        """(state of a model, hash of a text) -> forwards of it."""
        self._sizes: Sizes | None = None
        """Of the first model."""
        self._new = 1.0
        self._backward = False

    def to_json(self, rate: float | None = None) -> dict[str, Any]:
        """The entry of a stage under `work` of `run.json`; empty where nothing was computed.

        Args:
            rate: tokens per second of bare forwards of the decoder.
        """
        if not self.forwards or self._sizes is None:
            return {}
        names = ("forwards", "tokens", "least_tokens", "backward_tokens", "logits", "generated")
        counts: dict[str, Any] = {name: getattr(self, name) for name in names}
        seconds = None if not rate else round(self.least_flop / (2 * self._sizes.decoder * rate), 3)
        return counts | {"least_gflop": round(self.least_flop / 1e9, 3), "least_seconds": seconds}

    def count(self, ids: Sequence[int]) -> dict[State, int]:
        """How often a text was computed in each state of each model."""
        wanted = hash(tuple(ids))
        return {state: times for (state, text), times in self.times.items() if text == wanted}

    @contextmanager
    def watching(self, model: nn.Module, name: str) -> Iterator[None]:
        """Count what a model computes inside the context, which does not keep the model in memory.

        Args:
            name: of the model: what tells its forwards from those of another.
        """
        sizes = Sizes.of(model)
        self._sizes = self._sizes or sizes
        decoder = text_decoder(model)
        head = output_embeddings(model)

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            ids = kwargs.get("input_ids", args[0] if args else None)
            if (
                isinstance(ids, Tensor)
                and ids.ndim == 2
                and not _uncounted.get()
                and not getattr(module.forward, "computes_nothing", False)
            ):
                self._forward((name, str(next(module.parameters()).dtype)), sizes, ids, kwargs)

        def asked(_module: nn.Module, _args: tuple[Any, ...], logits: Tensor) -> None:
            positions = 0 if _uncounted.get() else logits.shape[:-1].numel()
            self.logits += positions
            self.least_flop += 2 * sizes.head * positions * self._new * (2 if self._backward else 1)

        handles = [decoder.register_forward_pre_hook(before, with_kwargs=True)]
        if head is not None:
            handles.append(head.register_forward_hook(asked))
        del model, decoder, head
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _forward(self, model: tuple[str, str], sizes: Sizes, ids: Tensor, kwargs: Mapping[str, Any]) -> None:
        self.forwards += 1
        self.tokens += ids.numel()
        self._backward = torch.is_grad_enabled()
        if kwargs.get("past_key_values") is not None:
            self.generated += ids.numel()
            self._new = 0.0
            return
        total, new = (ids.numel(), ids.numel()) if ids.device.type != "cpu" else self._known(model, ids, kwargs)
        self.least_tokens += new
        self._new = new / max(total, 1)
        self.least_flop += 2 * sizes.decoder * new
        if self._backward:
            self.backward_tokens += total * _backwards.get()
            self.least_flop += 2 * sizes.behind * total * _backwards.get()

    def _known(self, model: tuple[str, str], ids: Tensor, kwargs: Mapping[str, Any]) -> tuple[int, int]:
        """Tokens of a forward without padding, and those of texts that were not computed before."""
        mask, changed = kwargs.get("attention_mask"), _changed.get()
        lengths = mask.sum(1).tolist() if isinstance(mask, Tensor) and mask.ndim == 2 else [ids.shape[1]] * len(ids)
        state = (*model, changed.key if changed is not None else "")
        new = 0
        for row, length in zip(ids.tolist(), lengths, strict=True):
            key = (state, hash(tuple(row[:length])))
            new += 0 if key in self.times else length
            if key in self.times or len(self.times) < MOST_TEXTS:
                self.times[key] += 1
        return sum(lengths), new
