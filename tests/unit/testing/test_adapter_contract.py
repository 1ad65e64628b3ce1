"""The adapter for plain Linears with something wrong: a bad adapter for each check."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fairprune_framework import discovery
from fairprune_framework.api import (
    ArchitectureAdapter,
)
from fairprune_framework.testing.contracts import check_plugin
from fairprune_framework.testing.tiny import tiny_model

GLU: Any = discovery.load(discovery.find("architecture", "fairprune_framework:glu"))


def adapter(**methods: Any) -> Any:
    """The adapter for plain Linears with other methods; `self.good` is the adapter as it should be."""
    body = {"__doc__": "Bad.", "good": property(lambda self: GLU()), **methods}
    return dataclass(frozen=True, kw_only=True)(type("Bad", (GLU,), body))()


def sites(change: Callable[[nn.Module, list[Any]], Any]) -> ArchitectureAdapter:
    return adapter(sites=lambda self, model: change(model, list(self.good.sites(model))))


def shown(wrap: Callable[[Any, Any, str, Tensor, Any], Any]) -> ArchitectureAdapter:
    """Its taps go through `wrap(handler, site, tap, values, rows)`."""

    def tap(self: Any, model: nn.Module, at: Any, taps: Any, handler: Any) -> AbstractContextManager[None]:
        return self.good.tap(model, at, taps, lambda *seen: wrap(handler, *seen))  # type: ignore[no-any-return]

    return adapter(tap=tap)


def read_weights(model: nn.Module, found: list[Any]) -> list[Any]:
    assert sum(parameter.sum().item() for parameter in model.parameters()) != 0
    return found


def nudge(model: nn.Module, found: list[Any]) -> list[Any]:
    next(model.parameters()).data += 1
    return found


def rename(model: Any, found: list[Any]) -> list[Any]:
    model.config.nickname = "pruned"
    return found


@contextmanager
def untidy(self: Any, model: nn.Module, at: Any, taps: Any, handler: Any) -> Iterator[None]:
    with self.good.tap(model, at, taps, handler):
        model.register_forward_hook(lambda *_: None)
        yield


@contextmanager
def tidy_when_all_is_well(self: Any, model: nn.Module, at: Any, taps: Any, handler: Any) -> Iterator[None]:
    hooks = [
        model.get_submodule(f"{site.name}.down_proj").register_forward_pre_hook(
            lambda _, args, s=site: handler(s, "neuron", args[0][0], None)
        )
        for site in at
    ]
    yield
    for hook in hooks:
        hook.remove()


def without_roles(found: list[Any], *roles: str) -> list[Any]:
    return [replace(site, slices=tuple(piece for piece in site.slices if piece.role not in roles)) for site in found]


def half(handler: Any, site: Any, tap: str, values: Tensor, rows: Any) -> Any:
    replaced = handler(site, tap, values, rows)
    return None if replaced is None else torch.cat([replaced[:, :24], values[:, 24:]], 1)


def rolled(handler: Any, site: Any, tap: str, values: Tensor, rows: Any) -> Any:
    replaced = handler(site, tap, values.roll(1, -1), rows)
    return None if replaced is None else replaced.roll(-1, -1)


def flipped(handler: Any, site: Any, tap: str, values: Tensor, rows: Any) -> Any:
    replaced = handler(site, tap, values.flip(0), rows)
    return None if replaced is None else replaced.flip(0)


def louder(handler: Any, site: Any, tap: str, values: Tensor, rows: Any) -> Any:
    replaced = handler(site, tap, values, rows)
    return values * 1.01 if replaced is None else replaced


EVERYTHING = frozenset({"gate", "up", "neuron"})

BAD_ADAPTERS = [
    ("sites-distinct", sites(lambda model, found: found + found)),
    ("sites-distinct", sites(lambda model, found: found[::-1])),
    ("sites-distinct", sites(lambda model, found: without_roles(found, "out"))),
    ("sites-distinct", sites(lambda model, found: [replace(site, units=site.units + 1) for site in found])),
    ("sites-complete", sites(lambda model, found: found[:-1])),
    ("sites-complete", sites(lambda model, found: without_roles(found, "up"))),
    ("sites-complete", sites(lambda model, found: [replace(site, units=site.units - 1) for site in found])),
    ("meta-tensors", sites(read_weights)),
    ("foreign-model-refused", adapter(sites=lambda self, model: self.good.sites(model) if hasattr(model, "config") else [])),
    ("model-untouched", sites(nudge)),
    ("model-untouched", sites(rename)),
    ("causal", adapter(tap=lambda self, model, at, taps, handler: nullcontext())),
    (
        "taps-reported",
        shown(lambda handler, site, tap, values, rows: handler(site, tap, values, rows) if tap != "gate" else None),
    ),
    ("taps-reported", shown(lambda handler, site, tap, values, rows: handler(site, tap, values[1:], rows))),
    ("requested-taps-only", adapter(tap=lambda self, model, at, taps, handler: self.good.tap(model, at, EVERYTHING, handler))),
    (
        "requested-taps-only",
        adapter(tap=lambda self, model, at, taps, handler: self.good.tap(model, self.good.sites(model), taps, handler)),
    ),
    ("observation-only", shown(louder)),
    ("rows-match-tokens", shown(flipped)),
    ("cleanup", adapter(tap=untidy)),
    ("cleanup-after-error", adapter(tap=tidy_when_all_is_well)),
    ("neuron-tap-feeds-out", shown(half)),
    ("slices-match-units", shown(rolled)),
    ("zeroed-equals-removed", shown(rolled)),
    (
        "removed-equals-reloaded",
        sites(lambda model, found: [replace(site, config_fields={"max_position_embeddings": 1}) for site in found]),
    ),
]


@pytest.mark.parametrize(("check", "plugin"), BAD_ADAPTERS)
def test_a_bad_adapter_is_caught(check: str, plugin: ArchitectureAdapter, fails: Callable[..., None]) -> None:
    fails("architecture", plugin, check, model=lambda: tiny_model("llama"))


def test_every_check_has_a_bad_plugin(common: set[str]) -> None:
    """The test above, read back: no check may be without a plugin that fails it."""
    (mark,) = test_a_bad_adapter_is_caught.pytestmark  # type: ignore[attr-defined]
    caught = {check for check, _ in mark.args[1]} | common
    assert set(check_plugin("architecture", GLU(), only=[]).checks) == caught
