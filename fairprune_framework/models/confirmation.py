"""The causal check of an adapter: what is changed at a tap must change the logits, once in each forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fairprune_framework.api.decoders import text_config
from fairprune_framework.api.taps import layer_path
from fairprune_framework.api.types import Site, Tap
from fairprune_framework.errors import ContractViolation, FairpruneError, UnsupportedArchitecture, UserError, raised
from fairprune_framework.models.architecture import DOCS, Architecture

NOT_FINITE = (
    "the logits of {} are not finite on plain tokens: weights or a number of its config are damaged, or too large for its dtype"
)


@torch.no_grad()
def confirm(model: nn.Module, architecture: Architecture, rows: int = 32) -> list[str]:
    """Check each site causally: a changed value at its neuron tap must change the logits. Returns the unchecked sites, to which no
    token was routed.

    One forward pass covers many sites: each row of the batch has the same tokens, and each site is perturbed in its own row.

    Raises:
        ContractViolation: a tap was not called, has the wrong width, raised, or does not affect the logits.
        UnsupportedArchitecture: the model runs a site more than once in a forward pass of text, or not at all, or holds tokens in
            another order than (text, token).
        UserError: the model does not compute logits of plain token ids.
    """
    vocabulary = int(text_config(model).vocab_size)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, vocabulary, (1, 8), generator=generator)
    names = list(architecture.sites)
    unchecked: list[str] = []
    training = model.training
    model.eval()
    try:
        _refuse_infinite_answers(model, tokens)
        for start in range(0, len(names), rows):
            unchecked += _confirm_group(model, architecture, names[start : start + rows], tokens)
    finally:
        model.train(training)
    return unchecked


def _refuse_infinite_answers(model: nn.Module, tokens: Tensor) -> None:
    """Raise `UserError` where a model answers NaN or Inf to texts of different lengths: without a mask, kernels of attention hide
    the NaN that a damaged number of the config makes. A model that takes no mask is looked at without."""
    ids = tokens.expand(2, -1).to(next(model.parameters()).device)
    mask = torch.ones_like(ids)
    mask[1, -1] = 0
    try:
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    except Exception:
        return
    if not torch.isfinite(logits[mask.bool()]).all():
        raise UserError(NOT_FINITE.format(type(model).__name__))


def _confirm_group(model: nn.Module, architecture: Architecture, names: Sequence[str], tokens: Tensor) -> list[str]:
    device = next(model.parameters()).device
    batch = tokens.expand(len(names) + 2, -1).to(device)
    length = tokens.shape[1]
    touched: dict[str, bool] = {}

    def disturb(site: Site, tap: Tap, values: Tensor, rows: Tensor | None) -> Tensor | None:
        if site.name not in names or tap != "neuron":
            return None
        if values.shape[-1] != site.units * site.unit_width:
            raise ContractViolation(
                f"{architecture.name}: the neuron tap of {site.name} has {values.shape[-1]} columns, not "
                f"{site.units * site.unit_width}"
            )
        if site.name in touched:
            raise UnsupportedArchitecture(
                f"{type(model).__name__} runs {site.name} several times in one forward pass: its statistics would count every token "
                f"as often. See {DOCS}"
            )
        if rows is None and len(values) != batch.numel():
            raise UnsupportedArchitecture(
                f"{type(model).__name__} computes {len(values)} vectors for {batch.numel()} tokens at {site.name}: which belongs to which "
                f"token is not known. See {DOCS}"
            )
        row = names.index(site.name) + 1
        index = torch.arange(values.shape[0], device=values.device) if rows is None else rows
        mine = torch.div(index, length, rounding_mode="floor") == row
        touched[site.name] = bool(mine.any())
        return torch.where(mine.unsqueeze(-1), values * -3 + 1, values)

    sites = list(architecture.sites.values())
    try:
        with architecture.adapter.tap(model, sites, frozenset({"neuron"}), disturb):
            logits = model(input_ids=batch, use_cache=False).logits.float()
    except (FairpruneError, KeyboardInterrupt):
        raise
    except BaseException as error:
        _plain_forward(model, batch)
        raise ContractViolation(f"{architecture.name}: a forward pass under its taps raised {raised(error)}") from error
    if not torch.isfinite(logits[0]).all():
        raise UserError(NOT_FINITE.format(type(model).__name__))
    change = (logits[1:-1] - logits[0]).abs().amax((1, 2))
    noise = (logits[-1] - logits[0]).abs().max()
    for name, moved in zip(names, change, strict=True):
        if name not in touched:
            if not _runs(model, layer_path(name), batch):
                raise UnsupportedArchitecture(
                    f"{type(model).__name__} does not run {layer_path(name)} on text alone. See {DOCS}"
                )
            raise ContractViolation(f"{architecture.name}: the neuron tap of {name} was never called")
        if touched[name] and not moved > 4 * noise:
            _refuse_mixed_texts(model, batch, logits)
            raise ContractViolation(f"{architecture.name}: changing the neuron tap of {name} does not change the logits")
    return [name for name in names if not touched[name]]


def _refuse_mixed_texts(model: nn.Module, batch: Tensor, logits: Tensor) -> None:
    """Raise `UnsupportedArchitecture` where the first text, which was left alone, has other logits than without taps."""
    plain = model(input_ids=batch, use_cache=False).logits.float()[0]
    if (logits[0] - plain).abs().max() > 1e-4 * plain.abs().max():
        raise UnsupportedArchitecture(
            f"changing neurons in one text changes another text of {type(model).__name__}: its layers do not hold tokens in the order "
            f"(text, token). See {DOCS}"
        )


def _runs(model: nn.Module, layer: str, batch: Tensor) -> bool:
    """Whether a forward pass of token ids calls a decoder layer."""
    calls: list[str] = []
    handle = model.get_submodule(layer).register_forward_pre_hook(lambda *_: calls.append(layer))
    try:
        model(input_ids=batch[:1], use_cache=False)
    finally:
        handle.remove()
    return bool(calls)


def _plain_forward(model: nn.Module, batch: Tensor) -> None:
    """Raise `UserError` where the model itself, without any tap, does not compute logits of token ids."""
    try:
        model(input_ids=batch, use_cache=False)
    except Exception as error:
        lines = str(error).strip().splitlines() or ["no reason was given"]
        raise UserError(
            f"{type(model).__name__} does not compute logits of plain token ids: {type(error).__name__}: {lines[0]}"
        ) from error
