"""The choice of the adapter for a model, and its verification: coverage of the weights, and a causal check of each site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fairprune_framework import discovery
from fairprune_framework.api.interfaces import ArchitectureAdapter
from fairprune_framework.api.taps import layer_path
from fairprune_framework.api.types import Site, Tap
from fairprune_framework.errors import AmbiguousName, BrokenPlugin, ContractViolation, FairpruneError, UnsupportedArchitecture
from fairprune_framework.recipes.recipe import PluginSpec

DOCS = "docs/errors/unsupported-architecture.md"


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """An adapter with its sites."""

    adapter: ArchitectureAdapter
    name: str
    """`distribution:name` of the adapter."""
    sites: Mapping[str, Site]


def recognise(model: nn.Module, spec: PluginSpec | None = None) -> Architecture:
    """Find the sites of a model with the installed adapters, or with the requested one.

    Raises:
        UnsupportedArchitecture: no adapter accepts the model; the message lists the expected and the actual modules per adapter.
        AmbiguousName: two adapters accept it.
    """
    if spec is not None:
        adapter = discovery.build("architecture", spec.plugin, spec.options)
        entry = discovery.find("architecture", spec.plugin)
        assert isinstance(adapter, ArchitectureAdapter)
        try:
            sites = adapter.sites(model)
        except UnsupportedArchitecture as error:
            raise UnsupportedArchitecture(
                f"{entry.label} does not know {type(model).__name__!r}: {error}. See {DOCS}"
            ) from error
        if gap := coverage_gap(model, sites):
            raise UnsupportedArchitecture(f"{entry.label} names the sites of {type(model).__name__}, but {gap}. See {DOCS}")
        return Architecture(
            adapter=adapter, name=f"{entry.distribution}:{entry.name}", sites={site.name: site for site in sites}
        )
    accepted: list[Architecture] = []
    reasons: list[str] = []
    for entry in discovery.entries("architecture"):
        name = f"{entry.distribution}:{entry.name}"
        try:
            adapter = discovery.build("architecture", name)
            assert isinstance(adapter, ArchitectureAdapter)
            sites = adapter.sites(model)
        except (UnsupportedArchitecture, BrokenPlugin) as error:
            reasons.append(f"{entry.name}: {error}")
            continue
        if gap := coverage_gap(model, sites):
            reasons.append(f"{entry.name}: {gap}")
            continue
        accepted.append(Architecture(adapter=adapter, name=name, sites={site.name: site for site in sites}))
    if not accepted:
        raise UnsupportedArchitecture(
            f"no MLP site in {type(model).__name__!r}. {'; '.join(reasons) or 'No adapter is installed'}. See {DOCS}"
        )
    if len(accepted) > 1:
        names = " and ".join(architecture.name for architecture in accepted)
        raise AmbiguousName(f"{type(model).__name__} is accepted by {names}: choose with --architecture NAME.")
    return accepted[0]


def coverage_gap(model: nn.Module, sites: Sequence[Site]) -> str | None:
    """The first uncovered MLP parameter, as the end of a sentence; None if all are covered.

    The check includes, in every decoder layer, the blocks (children of the layer) with a site in any layer. A matrix there outside
    all sites may only be a router (one row per expert, or a single row), and the length of a vector must differ from the width of a
    site.
    """
    covered = {piece.parameter for site in sites for piece in site.slices}
    if len({site.name for site in sites}) < len(sites):
        raise ContractViolation("two sites have the same name")
    blocks = {site.name.removeprefix(layer_path(site.name)).strip(".").split(".")[0] for site in sites}
    experts: dict[str, int] = {}
    widths: dict[str, set[int]] = {}
    for site in sites:
        block = _block(site.name)
        experts[block] = experts.get(block, 0) + 1
        widths.setdefault(block, set()).add(site.units)
    for name, parameter in model.named_parameters():
        block = _block(name)
        if name in covered or not block or block.rpartition(".")[2] not in blocks:
            continue
        routes = parameter.ndim >= 2 and parameter.shape[0] in (1, experts.get(block, 0))
        inert = parameter.ndim < 2 and parameter.shape[-1:].numel() not in widths.get(block, set())
        if not (routes or inert) and not (parameter.ndim < 2 and _output_bias(name, covered)):
            return f"no site covers {name} {tuple(parameter.shape)}"
    return None


def _block(name: str) -> str:
    layer = layer_path(name)
    rest = name.removeprefix(layer).strip(".").split(".")
    return f"{layer}.{rest[0]}" if layer and rest[0] else ""


def _output_bias(name: str, covered: set[str]) -> bool:
    return name.endswith(".bias") and f"{name.removesuffix('bias')}weight" in covered


@torch.no_grad()
def confirm(model: nn.Module, architecture: Architecture, rows: int = 32) -> list[str]:
    """Check each site causally: a changed value at its neuron tap must change the logits. Returns the unchecked sites, to which no
    token was routed.

    One forward pass covers many sites: each row of the batch has the same tokens, and each site is perturbed in its own row.

    Raises:
        ContractViolation: a tap was not called, has the wrong width, or does not affect the logits.
    """
    vocabulary = int(model.config.get_text_config().vocab_size)  # type: ignore[union-attr,operator]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, vocabulary, (1, 8), generator=generator)
    names = list(architecture.sites)
    unchecked: list[str] = []
    training = model.training
    model.eval()
    try:
        for start in range(0, len(names), rows):
            unchecked += _confirm_group(model, architecture, names[start : start + rows], tokens)
    finally:
        model.train(training)
    return unchecked


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
                f"{architecture.name}: the neuron tap of {site.name} has {values.shape[-1]} columns, not {site.units}"
            )
        row = names.index(site.name) + 1
        index = torch.arange(values.shape[0], device=values.device) if rows is None else rows
        mine = torch.div(index, length, rounding_mode="floor") == row
        touched[site.name] = touched.get(site.name, False) or bool(mine.any())
        return torch.where(mine.unsqueeze(-1), values * -3 + 1, values)

    sites = list(architecture.sites.values())
    with architecture.adapter.tap(model, sites, frozenset({"neuron"}), disturb):
        logits = model(input_ids=batch, use_cache=False).logits.float()
    if not torch.isfinite(logits[0]).all():
        raise FairpruneError(f"the logits of {type(model).__name__} are not finite on plain tokens: the weights are damaged")
    change = (logits[1:-1] - logits[0]).abs().amax((1, 2))
    noise = (logits[-1] - logits[0]).abs().max()
    for name, moved in zip(names, change, strict=True):
        if name not in touched:
            raise ContractViolation(f"{architecture.name}: the neuron tap of {name} was never called")
        if touched[name] and not moved > 4 * noise:
            raise ContractViolation(f"{architecture.name}: changing the neuron tap of {name} does not change the logits")
    return [name for name in names if not touched[name]]
