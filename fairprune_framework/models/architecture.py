"""The choice of the adapter for a model: the one, or the few together, whose sites cover every MLP of its text decoder.

Adapters of attention heads are used where they are named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from torch import nn

from fairprune_framework import discovery
from fairprune_framework.api.decoders import below, decoder_path, other_modalities
from fairprune_framework.api.interfaces import ArchitectureAdapter
from fairprune_framework.api.taps import layer_path
from fairprune_framework.api.types import Site
from fairprune_framework.errors import AmbiguousName, PluginError, UnsupportedArchitecture, UserError
from fairprune_framework.models.combined import MOST, Combined, disjoint, in_order
from fairprune_framework.models.coverage import coverage_gap
from fairprune_framework.models.peft_adapters import refuse_adapter_modules
from fairprune_framework.models.site_contract import check_sites
from fairprune_framework.recipes.recipe import PluginSpec
from fairprune_framework.utilities.aside import plugin_call

DOCS = "docs/errors/unsupported-architecture.md"
RECURRENT = ("mixer", "mamba", "ssm", "mlstm", "time_mix", "attention")
"""Children of the layers of state-space and recurrent models that have no MLP."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """An adapter with its sites."""

    adapter: ArchitectureAdapter
    name: str
    """`distribution:name` of the adapter; of several, joined by `+`."""
    sites: Mapping[str, Site]

    @property
    def parts(self) -> tuple[ArchitectureAdapter, ...]:
        """The adapter, or the several that it combines."""
        return self.adapter.parts if isinstance(self.adapter, Combined) else (self.adapter,)


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """An adapter that names sites in a model."""

    adapter: ArchitectureAdapter
    name: str
    sites: Sequence[Site]


def recognise(model: nn.Module, spec: PluginSpec | None = None) -> Architecture:
    """Find the sites of a model with the installed adapters, or with the requested ones (`experts+glu`, `glu+kv-groups`).

    Raises:
        UnsupportedArchitecture: no adapter, and no few of them together, cover the model; the message says what its layers hold.
        AmbiguousName: two adapters do.
        BrokenPlugin: a requested adapter raised.
        UserError: the model holds modules of PEFT.
    """
    refuse_adapter_modules(model)
    if spec is not None:
        return _requested(model, spec)
    candidates: list[_Candidate] = []
    reasons: list[str] = []
    for entry in discovery.entries("architecture"):
        try:
            candidate = _candidate(model, entry, {})
            if all(site.kind != "heads" for site in candidate.sites):
                candidates.append(candidate)
        except UnsupportedArchitecture:
            reasons.append("")
        except PluginError as error:
            reasons.append(str(error))
    for size in range(1, min(MOST, len(candidates)) + 1):
        found, gaps = [], []
        for group in combinations(candidates, size):
            if disjoint([candidate.sites for candidate in group]):
                gap = coverage_gap(model, [site for candidate in group for site in candidate.sites])
                if gap is None:
                    found.append(_joined(group))
                else:
                    gaps.append(f"{'+'.join(one.name.partition(':')[2] for one in group)} finds sites, but {gap}")
        if len(found) > 1:
            names = " and ".join(architecture.name for architecture in found)
            raise AmbiguousName(f"{type(model).__name__} is accepted by {names}: choose with --architecture NAME.")
        if found:
            return found[0]
        reasons += gaps
    raise UnsupportedArchitecture(
        f"no MLP site in {type(model).__name__!r}: {_layers_hold(model)}. {_because(reasons)}See {DOCS}"
    )


def _requested(model: nn.Module, spec: PluginSpec) -> Architecture:
    names = spec.plugin.split("+")
    if len(names) > 1 and spec.options:
        raise UserError(f"options of --architecture go to one adapter. Got {spec.plugin!r} instead.")
    entries = [discovery.find("architecture", name) for name in names]
    labels = " and ".join(entry.label for entry in entries)
    try:
        candidates = [_candidate(model, entry, spec.options) for entry in entries]
    except UnsupportedArchitecture as error:
        raise UnsupportedArchitecture(f"{labels} does not know {type(model).__name__!r}: {error}. See {DOCS}") from error
    if not disjoint([candidate.sites for candidate in candidates]):
        raise UnsupportedArchitecture(f"{labels} name the same neurons of {type(model).__name__}. See {DOCS}")
    if gap := coverage_gap(model, [site for candidate in candidates for site in candidate.sites]):
        raise UnsupportedArchitecture(f"{labels} names sites of {type(model).__name__}, but {gap}. See {DOCS}")
    return _joined(candidates)


def _candidate(model: nn.Module, entry: discovery.Entry, options: Mapping[str, object]) -> _Candidate:
    """An adapter with its sites in the text decoder.

    Raises:
        UnsupportedArchitecture: it knows none there.
        BrokenPlugin: it cannot be loaded, or raised something else.
        ContractViolation: what it names is no site of the model.
    """
    adapter = discovery.build_of(entry, options)
    assert isinstance(adapter, ArchitectureAdapter)
    with plugin_call(f"{entry.label}: sites() of {type(model).__name__}", passing=(UnsupportedArchitecture,)):
        sites = adapter.sites(model)
    check_sites(model, sites, entry.label)
    path, others = decoder_path(model), other_modalities(model)
    inside = [site for site in sites if below(site.name, path) and not any(below(site.name, other) for other in others)]
    if not inside:
        raise UnsupportedArchitecture(f"it found no site in the text decoder{f', {path}' if path else ''}")
    return _Candidate(adapter=adapter, name=f"{entry.distribution}:{entry.name}", sites=inside)


def _joined(candidates: Sequence[_Candidate]) -> Architecture:
    """One architecture of an adapter, or of several."""
    if len(candidates) == 1:
        adapter, sites = candidates[0].adapter, list(candidates[0].sites)
    else:
        adapter = Combined(parts=tuple(candidate.adapter for candidate in candidates))
        sites = in_order([site for candidate in candidates for site in candidate.sites])
    name = "+".join(candidate.name for candidate in candidates)
    return Architecture(adapter=adapter, name=name, sites={site.name: site for site in sites})


def _layers_hold(model: nn.Module) -> str:
    """What stands in the first decoder layer, and what it is where it has no MLP at all."""
    path, others = decoder_path(model), other_modalities(model)
    layer = next(
        (
            f"{name}.0"
            for name, module in model.named_modules()
            if isinstance(module, nn.ModuleList)
            and len(module)
            and below(name, path)
            and not any(below(name, other) for other in others)
        ),
        None,
    )
    if layer is None:
        return "it has no list of layers"
    children = dict(model.get_submodule(layer).named_children())
    held = ", ".join(f"{name} ({type(child).__name__})" for name, child in children.items()) or "nothing"
    blocks = [name for name in children if "norm" not in name.lower() and not name.startswith("ln")]
    recurrent = bool(blocks) and all(name in RECURRENT for name in blocks)
    return f"{layer_path(layer)} holds {held}{': a state-space or recurrent block, without an MLP' if recurrent else ''}"


def _because(reasons: Sequence[str]) -> str:
    """What adapters found beyond nothing."""
    said = [reason for reason in reasons if reason]
    if not reasons:
        return "No adapter is installed. "
    names = ", ".join(sorted({entry.name for entry in discovery.entries("architecture")}))
    return f"{'; '.join(said)}. " if said else f"None of {names} knows such a layer. "
