"""The contract of architecture adapters: complete and causal sites, taps without side effects, slices that can be pruned."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fairprune_framework.api.interfaces import ArchitectureAdapter
from fairprune_framework.api.types import Plan, Site, Tap
from fairprune_framework.errors import UnsupportedArchitecture
from fairprune_framework.models.architecture import Architecture
from fairprune_framework.models.confirmation import confirm
from fairprune_framework.models.coverage import coverage_gap
from fairprune_framework.models.loading import load_model
from fairprune_framework.models.weights import fingerprint
from fairprune_framework.surgery.changes import pruned_in_place
from fairprune_framework.surgery.equality import MAX_DIFFERENCE, logits_of
from fairprune_framework.surgery.masking import masked
from fairprune_framework.surgery.obstacles import obstacle
from fairprune_framework.surgery.removal import save_pruned_model
from fairprune_framework.surgery.slices import part, positions, zero_
from fairprune_framework.surgery.widths import stored_widths
from fairprune_framework.testing.families import EXAMPLES, small_model
from fairprune_framework.testing.report import Check, CheckSkipped, require
from fairprune_framework.testing.tiny import FAMILIES, tiny_model, tiny_tokenizer

UNIT_TAPS: frozenset[Tap] = frozenset({"gate", "up", "neuron"})
NOISE = 1e-4
"""Tolerated float32 noise of logits of the order of 1."""


class NotThisOne(Exception):
    """Raised inside a forward pass by the check for leftovers."""


class AdapterBench:
    """An adapter with a model of its family."""

    def __init__(self, adapter: ArchitectureAdapter, factory: Callable[[], nn.Module]) -> None:
        self.adapter, self.factory = adapter, factory
        self.model = factory().eval()
        generator = torch.Generator().manual_seed(0)
        config: Any = self.model.config
        self.vocabulary = int(config.get_text_config().vocab_size)
        self.ids = torch.randint(3, self.vocabulary, (3, 16), generator=generator)
        self.plain = self.logits()

    @cached_property
    def sites(self) -> list[Site]:
        """The sites of the model."""
        return list(self.adapter.sites(self.model))

    @cached_property
    def every(self) -> frozenset[Tap]:
        """All taps listed by any site."""
        return frozenset().union(*(site.taps for site in self.sites))

    @cached_property
    def architecture(self) -> Architecture:
        """The adapter with its sites, unverified."""
        return Architecture(adapter=self.adapter, name="under-test", sites={site.name: site for site in self.sites})

    @cached_property
    def reached(self) -> list[Site]:
        """The sites that a token of `ids` was routed to."""
        return [site for site in self.sites if len(self.neurons(site))]

    def neurons(self, site: Site) -> Tensor:
        """(M, N) values of a site's neuron tap, in the model's present state."""
        values_MN: list[Tensor] = []
        with self.adapter.tap(
            self.model, [site], frozenset({"neuron"}), lambda _site, _tap, values, _rows: values_MN.append(values)
        ):
            self.logits()
        return torch.cat(values_MN) if values_MN else torch.empty(0)

    def logits(self) -> Tensor:
        """Logits of the model in its present state."""
        return logits_of(self.model, self.ids)

    def some_units(self, seed: int = 0) -> dict[str, list[int]]:
        """About a quarter of the units of each site, in uneven numbers."""
        generator = torch.Generator().manual_seed(seed)
        return {
            site.name: sorted(torch.randperm(site.units, generator=generator)[: max(1, site.units // 4 - index % 2)].tolist())
            for index, site in enumerate(self.sites)
        }

    @contextmanager
    def zeroed(self, units: Mapping[str, list[int]], roles: frozenset[str]) -> Iterator[None]:
        """The model with the slices of the given units and roles set to zero."""
        state = {name: value.clone() for name, value in self.model.state_dict().items()}
        try:
            with torch.no_grad():
                for name, chosen in units.items():
                    site = self.architecture.sites[name]
                    zero_(dict(self.model.named_parameters()), site, torch.tensor(chosen, dtype=torch.long), roles)
            yield
        finally:
            self.model.load_state_dict(state)

    def difference(self, units: Mapping[str, list[int]], roles: frozenset[str]) -> tuple[float, float]:
        """Largest difference of logits between masking and zeroing slices, and the largest effect of masking."""
        with masked(self.model, self.architecture, units):
            expected = self.logits()
        with self.zeroed(units, roles):
            logits = self.logits()
        return (logits - expected).abs().max().item(), (expected - self.plain).abs().max().item()

    def plan(self) -> Plan:
        """A plan that removes some units of every site."""
        why = next((why for site in self.sites if (why := obstacle(site, "exact"))), None)
        if why:
            raise CheckSkipped(f"the model cannot be pruned: {why}")
        return Plan(
            model="under test",
            fingerprint=fingerprint(self.model),
            operator="remove",
            sites={name: tuple(units) for name, units in self.some_units().items()},
            requested={},
            achieved={},
        )


def first_accepted(adapter: ArchitectureAdapter) -> Callable[[], nn.Module]:
    """The first family that the adapter covers alone, of the tiny ones and of the examples of layouts; `ValueError` if there is none."""
    factories = [partial(tiny_model, family) for family in FAMILIES] + [partial(small_model, name) for name in EXAMPLES]
    for factory in factories:
        model = factory()
        try:
            if coverage_gap(model, adapter.sites(model)) is None:
                return factory
        except UnsupportedArchitecture:
            continue
    raise ValueError(
        f"{type(adapter).__name__} accepts none of the tiny families: give `check_plugin` of "
        "fairprune_framework.testing.contracts `model=`, a factory of a model of its family, in a test of yours"
    )


def traces(model: nn.Module) -> dict[str, Any]:
    """All possible leftovers of a tap on a model: hooks, attributes, classes, parameters, modes."""
    state: dict[str, Any] = {}
    for name, module in model.named_modules():
        hooks = {key: list(value) for key, value in vars(module).items() if key.endswith("_hooks") and value}
        state[name] = (type(module), sorted(vars(module)), hooks, id(vars(module).get("forward")), module.training)
    state["parameters"] = {name: id(parameter) for name, parameter in model.named_parameters()}
    return state


def adapter_checks(adapter: ArchitectureAdapter, factory: Callable[[], nn.Module] | None) -> dict[str, Check]:
    """All checks of an adapter; each can run alone, on one shared model that none may modify."""
    at = AdapterBench(adapter, factory or first_accepted(adapter))

    def distinct() -> None:
        require(at.sites, "no site")
        names = [site.name for site in at.sites]
        require(len(set(names)) == len(names), "two sites have the same name")
        require(
            [site.layer for site in at.sites] == sorted(site.layer for site in at.sites), "sites must come in forward order"
        )
        taken: dict[str, Tensor] = {}
        for site in at.sites:
            require(site.units > 0, f"{site.name} has no units")
            roles = [slice_.role for slice_ in site.slices]
            require(
                len(set(roles)) == len(roles) and "out" in roles,
                f"{site.name}: each role once, and `out` among them. Got {roles}",
            )
            for slice_ in site.slices:
                parameter = at.model.get_parameter(slice_.parameter)
                index = positions(slice_, torch.arange(site.units))
                require(int(index.max()) < parameter.shape[slice_.axis], f"{slice_} lies outside {tuple(parameter.shape)}")
                mark = taken.setdefault(slice_.parameter, torch.zeros(parameter.shape, dtype=torch.long))
                tensor, axis = part(mark, slice_)
                tensor.index_add_(axis, index, torch.ones_like(tensor.index_select(axis, index)))
        twice = [name for name, mark in taken.items() if int(mark.max()) > 1]
        require(not twice, f"slices overlap in {', '.join(twice)}")

    def complete() -> None:
        gap = coverage_gap(at.model, at.sites)
        require(gap is None, str(gap))

    def meta() -> None:
        require(list(adapter.sites(copy.deepcopy(at.model).to("meta"))) == at.sites, "the sites differ on meta tensors")

    def foreign() -> None:
        try:
            sites = adapter.sites(nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4)))
        except UnsupportedArchitecture as error:
            require(str(error).strip(), "UnsupportedArchitecture must name the expected and the actual modules")
        else:
            require(False, f"a model without an MLP was accepted: {sites}")

    def untouched() -> None:
        model = at.factory().eval()
        state, before = {name: value.clone() for name, value in model.state_dict().items()}, traces(model)
        config: Any = model.config
        fields = config.to_dict()
        sites = adapter.sites(model)
        with adapter.tap(model, sites, at.every, lambda *_: None):
            logits_of(model, at.ids)
        require(traces(model) == before, "hooks, attributes or modules are left on the model")
        require(config.to_dict() == fields, "the config was modified")
        changed = [name for name, value in model.state_dict().items() if not torch.equal(value, state[name])]
        require(not changed, f"weights were modified: {', '.join(changed)}")

    def causal() -> None:
        confirm(at.model, at.architecture)
        require(at.reached, "no token reached any site")

    def shown() -> None:
        calls: dict[tuple[str, Tap], list[tuple[Tensor, Tensor | None]]] = {}

        def note(site: Site, tap: Tap, values: Tensor, rows: Tensor | None) -> None:
            calls.setdefault((site.name, tap), []).append((values, rows))

        with adapter.tap(at.model, at.sites, at.every, note):
            at.logits()
        hidden = int(at.model.get_input_embeddings().embedding_dim)  # type: ignore[operator]
        for (name, tap), seen in calls.items():
            site = at.architecture.sites[name]
            require(tap in site.taps, f"{name} reports the tap {tap!r}, which it does not list")
            require(len(seen) == 1, f"{name} reports the tap {tap!r} {len(seen)} times in one forward pass")
            values, rows = seen[0]
            wide = site.units * site.unit_width if tap in UNIT_TAPS else hidden
            require(
                values.ndim == 2 and values.shape[1] == wide,
                f"{name}, tap {tap!r}: (M, {wide}) expected, got {tuple(values.shape)}",
            )
            long = at.ids.numel() if rows is None else len(rows)
            require(len(values) == long, f"{name}, tap {tap!r}: {len(values)} rows of values, but {long} tokens")
        for site in at.reached:
            mates = [other.name for other in at.sites if other.layer == site.layer]
            for tap in site.taps:
                there = (site.name, tap) in calls if tap in UNIT_TAPS else any((name, tap) in calls for name in mates)
                require(there, f"{site.name} lists the tap {tap!r}, but never reports it")

    def only_asked() -> None:
        seen: set[tuple[str, Tap]] = set()

        def note(site: Site, tap: Tap, values: Tensor, rows: Tensor | None) -> None:
            seen.add((site.name, tap))

        with adapter.tap(at.model, at.sites[:1], frozenset({"neuron"}), note):
            at.logits()
        require(
            seen == {(at.sites[0].name, "neuron")},
            f"only the neuron tap of {at.sites[0].name} was requested, got {sorted(seen)}",
        )

    def silent() -> None:
        with adapter.tap(at.model, at.sites, at.every, lambda *_: None):
            off = (at.logits() - at.plain).abs().max().item()
        require(off <= NOISE, f"observation alone changes the logits by {off:.1e}")

    def rows_name_tokens() -> None:
        for site in at.reached:
            touched: list[int] = []

            def disturb(
                where: Site, tap: Tap, values: Tensor, rows: Tensor | None, touched: list[int] = touched
            ) -> Tensor | None:
                if not len(values):
                    return None
                row = len(values) // 2
                touched.append(row if rows is None else int(rows[row]))
                values = values.clone()
                values[row] = values[row] * -3 + 1
                return values

            with adapter.tap(at.model, [site], frozenset({"neuron"}), disturb):
                change = (at.logits() - at.plain).abs().amax(-1)
            require(touched, f"no token reached {site.name}")
            row, token = divmod(touched[0], at.ids.shape[1])
            require(
                change[row, token] > NOISE,
                f"{site.name}: changing token {token} of text {row} does not change its prediction",
            )
            change[row, token:] = 0
            require(
                change.max() <= NOISE,
                f"{site.name}: changing token {token} of text {row} changes other texts or earlier tokens",
            )

    def no_trace() -> None:
        before = traces(at.model)
        with adapter.tap(at.model, at.sites, at.every, lambda *_: None):
            at.logits()
        require(traces(at.model) == before, "hooks, attributes or modules are left behind")
        require(torch.equal(at.logits(), at.plain), "the logits differ from before")

    def no_trace_after_error() -> None:
        def refuse(*_: object) -> None:
            raise NotThisOne

        before = traces(at.model)
        try:
            with adapter.tap(at.model, at.sites, at.every, refuse):
                at.logits()
        except NotThisOne:
            pass
        else:
            require(False, "an error of the handler was swallowed")
        require(traces(at.model) == before, "hooks, attributes or modules are left behind when the forward pass raises")

    def output_projection() -> None:
        for site in at.reached:
            off, done = at.difference({site.name: list(range(site.units))}, frozenset({"out"}))
            require(done > NOISE, f"masking all of {site.name} changes the logits by {done:.1e} only")
            require(
                off <= NOISE,
                f"masking {site.name} and zeroing its `out` slices differ by {off:.1e}: the tap is not the input of `out`",
            )

    def unit_slices() -> None:
        units = at.some_units(1)
        normed = {site.name for site in at.sites if any(slice_.role == "inner_norm" for slice_ in site.slices)}
        off, _ = at.difference({name: chosen for name, chosen in units.items() if name not in normed}, frozenset({"out"}))
        require(
            off <= NOISE,
            f"masking some units and zeroing their `out` slices differ by {off:.1e}: the slices are those of other units",
        )
        for site in at.reached:
            before_MN = at.neurons(site)
            mine = torch.tensor(units[site.name]).unsqueeze(-1) * site.unit_width + torch.arange(site.unit_width)
            for inner in ("gate", "up", "query", "key", "value"):
                side = frozenset({inner, f"{inner}_bias"})
                if not side & {slice_.role for slice_ in site.slices}:
                    continue
                with at.zeroed({site.name: units[site.name]}, side):
                    change_N = (at.neurons(site) - before_MN).abs().amax(0)
                named = f"zeroing the slices of {', '.join(sorted(side))} of some units of {site.name}"
                require(change_N[mine.reshape(-1)].min() > 0, f"{named} does not change each of them")
                change_N[mine.reshape(-1)] = 0
                require(change_N.max() <= NOISE, f"{named} changes other units: the slices are those of other units")

    def zeroed_equals_removed() -> None:
        plan = at.plan()
        with masked(at.model, at.architecture, plan.sites):
            expected = at.logits()
        with pruned_in_place(at.model, plan, at.architecture.sites, stored_widths(plan, at.architecture.sites, 1)):
            off = (at.logits() - expected).abs().max().item()
        require(off <= MAX_DIFFERENCE, f"pruning and masking differ by {off:.1e}, at most {MAX_DIFFERENCE:g}")
        require(torch.equal(at.logits(), at.plain), "the logits of the restored model differ from before")

    def removed_equals_reloaded() -> None:
        plan = at.plan()
        sites = at.architecture.sites
        cut = any(width < of for (_, of), width in stored_widths(plan, sites, 1).items())
        uniform = cut and not any(obstacle(site, "uniform") for site in at.sites)
        with tempfile.TemporaryDirectory() as folder:
            done = save_pruned_model(
                at.model,
                tiny_tokenizer(),
                plan,
                at.architecture,
                Path(folder) / "model",
                probe_ids=at.ids,
                widths="uniform" if uniform else "exact",
                reload=_reload,
            )
        require(done.cut > 0 and done.parameters_after < done.parameters_before, "no parameter was removed")

    return {
        "sites-distinct": distinct,
        "sites-complete": complete,
        "meta-tensors": meta,
        "foreign-model-refused": foreign,
        "model-untouched": untouched,
        "causal": causal,
        "taps-reported": shown,
        "requested-taps-only": only_asked,
        "observation-only": silent,
        "rows-match-tokens": rows_name_tokens,
        "cleanup": no_trace,
        "cleanup-after-error": no_trace_after_error,
        "neuron-tap-feeds-out": output_projection,
        "slices-match-units": unit_slices,
        "zeroed-equals-removed": zeroed_equals_removed,
        "removed-equals-reloaded": removed_equals_reloaded,
    }


def _reload(folder: Path) -> nn.Module:
    return load_model(str(folder))[0]
