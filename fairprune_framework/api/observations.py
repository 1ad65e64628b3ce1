"""What a statistic sees of one site in one micro-batch of one pass, and what it may share with others that see the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from fairprune_framework.api.types import Site, Stream, Tap

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fairprune_framework.api.outputs import Outputs

Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One forward (and backward) of each micro-batch of a stream; equal passes of several statistics run once."""

    stream: Stream = "contrasts"
    objective: Callable[[Outputs], Tensor] | None = None
    """-> (C,); a frozen dataclass with `__call__`, equal by value. None: forward of the trunk only."""
    logits: Literal["last", "all"] = "last"
    scale: float = 1.0
    """Factor on the neuron tap (integrated gradients) ..."""
    layer: int | None = None
    """... of this layer, or of all."""


@dataclass(frozen=True)
class Lasting:
    """What observations of one micro-batch have in common, whatever site they are of."""

    given: Mapping[int, Any] = field(default_factory=dict)
    """id -> tensor that every site is shown."""
    made: dict[tuple[Any, ...], tuple[tuple[Any, ...], Any]] = field(default_factory=dict)
    """As `Observation.made`, of `given` alone."""
    rooms: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)
    """Memory that is used again, by name: one dimension each, as long as the longest use was."""
    _results: dict[int, Any] = field(default_factory=dict)

    def holds(self, value: Any) -> bool:
        """Every site is shown it, or it was made of such tensors alone."""
        return id(value) in self.given or id(value) in self._results

    def keep(self, value: Any) -> None:
        """It was made of such tensors alone; of a tuple each part too."""
        for one in (value, *value) if isinstance(value, tuple) else (value,):
            self._results[id(one)] = one

    def room(self, name: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """As `Observation.room`. On a CPU, where it costs more to get large memory from the system than to fill it."""
        import torch

        size = prod(shape)
        if device.type != "cpu":
            return torch.empty(tuple(shape), dtype=dtype, device=device)
        key = (name, dtype, torch.is_inference_mode_enabled())
        if key not in self.rooms or len(self.rooms[key]) < size:
            self.rooms[key] = torch.empty(size, dtype=dtype)
        return self.rooms[key][:size].view(*shape)


@dataclass(frozen=True, eq=False)
class ValueSums:
    """Quantities of variants, to be added up for each attribute value: what a statistic may return in place of (C, A, K) summands, of
    which most would be 0."""

    of_variants: Tensor
    """(C, V, K) float64; 0 for a variant without a shared slot."""
    value: Tensor
    """(C, V, A) float64: 1 for the value that a variant has, as `value_of_variants`."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, A, K)."""
        return (self.of_variants.shape[0], self.value.shape[2], self.of_variants.shape[2])

    def spread(self) -> Tensor:
        """The summands, (C, A, K) float64."""
        return self.value.mT @ self.of_variants


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One site in one micro-batch of one pass. Calibration text: C documents, V = 1, no attribute."""

    acts: Mapping[Tap, Tensor]
    """tap -> (C, V, T, K), every token, in the model's dtype. Made when asked for; prefer `aligned` where it suffices."""
    grads: Mapping[Tap, Tensor]
    """d objective / d acts, same shapes; empty without an objective."""
    mask: Tensor
    """(C, V, T) bool. False: padding, absent variant, token not routed to this expert."""
    aligned: Mapping[Tap, Tensor]
    """tap -> (C, V, S, K): one pooled slot (the mean over the attribute's tokens), then the tokens after the attribute,
    matched one to one. float64; arbitrary where `aligned_mask` is False."""
    slots: Mapping[Tap, Tensor]
    """As `aligned`, in the model's dtype, at least float32, and 0 where `aligned_mask` is False: what differences and signs are
    computed from, in half of the memory."""
    aligned_variance: Mapping[Tap, Tensor]
    """tap -> (C, S, K): population variance over the present variants in each aligned slot, for a pair (a - b)^2 / 4; arbitrary
    where `aligned_mask` is False. In the model's dtype, at least float32; a third of the work of taking it from `aligned`."""
    aligned_mask: Tensor
    """(C, V, S) bool. True only where every present variant has the slot (for an expert: was routed to it)."""
    slot_weight: Tensor
    """(C, S) float64, weights of a mean over slots: 1 / the number of shared slots where a slot is shared, else 0. A row adds up to
    1, or to 0 for a contrast without a shared slot."""
    reached: Tensor
    """(C, 1, 1) float64: 1 for a contrast with a shared slot, else 0. Summed beside a quantity, it gives the divisor of its mean."""
    attribute: Tensor
    """(C, V) int64: which value of the contrast's category, below `values`; -1 for an absent variant."""
    values: int
    """Size of the largest vocabulary of attribute values of any category of the stream: the same in all its micro-batches."""
    equal_length: Tensor
    """(C,) bool: all present variants have the same number of tokens."""
    weights: Mapping[str, Tensor]
    """role -> weights of the site, as in `SiteContext`; empty unless the scorer declared `Needs.weights`."""
    pass_: Pass
    objective: Tensor | None = None
    """(C,) float64: the value of the pass's objective; None without one."""
    site: Site
    """What is looked at."""
    tokens: Tensor
    """(C, V, T) int64: token ids; arbitrary where a variant has no token."""
    lean: Tensor
    """(C, V) int64, as `Outputs.lean`: 1 for a stereotyping variant, -1 for its counterpart, 0 where a contrast names neither."""
    cluster: Tensor
    """(C,) int64: equal for contrasts of one template of one category, and in every run: what varies by chance together. In calibration
    text each document has its own."""
    category: Tensor
    """(C,) int64: index of each contrast's category into the axis G of `before`; 0 in calibration text."""
    before: Mapping[str, Tensor]
    """"<statistic name>.<output>" -> (G, R, K) float64: what the statistics named in `Statistic.after` came to at this site over the
    same stream, by category; empty without any. `obs.before[name][obs.category]` is (C, R, K)."""
    made: dict[tuple[Any, ...], tuple[tuple[Any, ...], Any]] = field(default_factory=dict, compare=False, repr=False)
    """What `once` has computed: function and identities of its inputs -> these inputs, and the result."""
    lasting: Lasting = field(default_factory=lambda: Lasting(), compare=False, repr=False)
    """What is the same at every site of the micro-batch, and what `once` has computed from that alone."""

    def once(self, function: Callable[..., Made], *inputs: Any) -> Made:
        """`function(*inputs)`, computed once for all statistics that ask for the same function of the same tensors at this site; of masks,
        weights of slots and attributes alone, once for all sites of the micro-batch.

        Nobody may change the result, which others are given too. A function of a module: a lambda is another one at every call.
        """
        key = (function, *(one if isinstance(one, (int, str)) else id(one) for one in inputs))
        found = self.lasting.made.get(key) or self.made.get(key)
        if found is None:
            found = (inputs, function(*inputs))  # the inputs are kept, so that no other takes their place in memory
            if all(isinstance(one, (int, str)) or self.lasting.holds(one) for one in inputs):
                self.lasting.made[key] = found
                self.lasting.keep(found[1])
            else:
                self.made[key] = found
        return found[1]

    def room(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor with arbitrary numbers, on the device of the masks, to compute in: for `out=`. The next caller of this name is given the
        same memory, so that it must not be returned or kept."""
        return self.lasting.room(f"own {name}", shape, dtype, self.mask.device)

    def products(self, tap: Tap = "neuron") -> Tensor:
        """Activation x gradient, (C, V, T, K), at least float32, 0 outside the mask; a new tensor at every call."""
        import torch

        acts_CVTK, grads_CVTK = self.acts[tap], self.grads[tap]
        wide = torch.promote_types(acts_CVTK.dtype, torch.float32)
        return (acts_CVTK.to(wide) * grads_CVTK).mul_(self.mask.unsqueeze(-1))

    def product_sums(self, tap: Tap = "neuron", of: Literal["signed", "absolute", "squared"] = "signed") -> Tensor:
        """Sum over variants and tokens of activation x gradient, of its absolute value, or of its square: (C, K) float64.

        As from `products`, which on a GPU moves ten times as much memory.
        """
        from fairprune_framework.functional.fused import product_sums, usable

        acts_CVTK, grads_CVTK = self.acts[tap], self.grads[tap]
        if usable(acts_CVTK) and usable(grads_CVTK):
            return product_sums(acts_CVTK, grads_CVTK, self.mask, of)
        product_CVTK = self.products(tap)
        if of != "signed":
            product_CVTK = product_CVTK.abs_() if of == "absolute" else product_CVTK.square_()
        return product_CVTK.sum(2).double().sum(1)
