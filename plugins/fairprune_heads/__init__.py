"""Attention heads as units, at the input of the output projection: whole key-value groups, or single query heads.

kv-groups  a unit is a key-value head with the query heads that read it: removed, zeroed or scaled
heads      a unit is a query head: zeroed or scaled; removed only where each has keys and values of its own

Found by shape: a module with Linears for query, key, value and output, whose other parameters are norms of one head. Both are used
where they are named: alone, or beside an adapter of the MLPs (`--architecture glu+kv-groups`). Source: grouped-query attention
(Ainslie et al. 2023); heads as units (Michel et al. 2019); the attention classes of transformers 5. docs/method/heads.md.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import nn

from fairprune_framework.api import (
    ArchitectureAdapter,
    Handler,
    Role,
    Site,
    Slice,
    Tap,
    TapPoint,
    UnsupportedArchitecture,
    child,
    decoder_modules,
    features,
    layer_points,
    layer_taps,
    tapped,
    text_config,
)

OUTPUTS = ("o_proj", "out_proj", "dense")
"""Names of the output projection; the others are `q_proj`, `k_proj` and `v_proj`."""
COUNTS = ("num_heads", "num_attention_heads", "num_key_value_heads")
"""Attributes with which a module counts its heads apart from its weights."""


@dataclass(frozen=True, kw_only=True)
class Attention:
    """The sizes of one attention module."""

    out: str
    """Name of the output projection."""
    groups: int
    """Key-value heads."""
    per: int
    """Query heads that read one."""
    dim: int
    """Of a query and a key."""
    value_dim: int
    """Of a value, and of what a query head gives to the output projection."""


def attention(module: nn.Module) -> Attention | None:
    """The sizes of a module that computes attention by heads; None where it is no such module, or mixes its heads in another way."""
    dim = getattr(module, "head_dim", None)
    inputs = [child(module, f"{letter}_proj") for letter in "qkv"]
    out = next((name for name in OUTPUTS if isinstance(child(module, name), nn.Linear)), None)
    if out is None or not isinstance(dim, int) or dim < 1 or not all(isinstance(each, nn.Linear) for each in inputs):
        return None
    (hidden, query), (_, key), (_, value) = (features(each) for each in inputs)
    joined, _ = features(child(module, out))
    heads, groups = query // dim, key // dim
    if {features(each)[0] for each in inputs} != {hidden} or query % dim or key % dim or not groups:
        return None
    if heads % groups or value % groups or joined != heads * (value // groups):
        return None
    known = {"q_proj", "k_proj", "v_proj", out}
    others = [(name, weight) for name, weight in module.named_parameters() if name.partition(".")[0] not in known]
    if any("." not in name or weight.numel() != dim for name, weight in others):  # not norms over the dimensions of one head
        return None
    return Attention(out=out, groups=groups, per=heads // groups, dim=dim, value_dim=value // groups)


class AttentionAdapter(ArchitectureAdapter):
    """One site per attention module; subclasses say what a unit is."""

    @abstractmethod
    def unit(self, found: Attention) -> bool:
        """Whether a unit is a whole group, and not one of its query heads."""

    def sites(self, model: nn.Module) -> Sequence[Site]:
        """See `ArchitectureAdapter.sites`."""
        found: list[Site] = []
        fields: dict[Attention, tuple[Mapping[str, int], tuple[int, ...]]] = {}
        for name, module, layer in decoder_modules(model):
            sizes = attention(module)
            if sizes is None or any(word in name.rpartition(".")[2] for word in ("encoder", "cross")):
                continue
            if sizes not in fields:
                fields[sizes] = _fields(text_config(model), sizes)
            found.append(self._site(model, name, module, layer, sizes, *fields[sizes]))
        if not found:
            raise UnsupportedArchitecture("looked for q_proj, k_proj, v_proj and o_proj of heads in one module, found none")
        return found

    def _site(
        self,
        model: nn.Module,
        name: str,
        module: Any,
        layer: int,
        sizes: Attention,
        fields: Mapping[str, int],
        storable: tuple[int, ...],
    ) -> Site:
        whole = self.unit(sizes)
        heads = sizes.per if whole else 1
        width = heads * sizes.value_dim
        slices = [Slice(parameter=f"{name}.{sizes.out}.weight", role="out", axis=1, step=width, width=width)]
        parts: list[tuple[str, Role, Role, int]] = [("q_proj", "query", "query_bias", heads * sizes.dim)]
        if whole:
            parts += [("k_proj", "key", "key_bias", sizes.dim), ("v_proj", "value", "value_bias", sizes.value_dim)]
        for path, role, bias, rows in parts:
            slices.append(Slice(parameter=f"{name}.{path}.weight", role=role, axis=0, step=rows, width=rows))
            if child(module, path).bias is not None:  # type: ignore[union-attr]
                slices.append(Slice(parameter=f"{name}.{path}.bias", role=bias, axis=0, step=rows, width=rows))
        own = {"neuron", "down"}
        taps: frozenset[Tap] = frozenset({*own, *layer_taps(model, name)})  # type: ignore[arg-type]
        return Site(
            name=name,
            kind="heads",
            layer=layer,
            units=sizes.groups if whole else sizes.groups * sizes.per,
            unit_width=width,
            slices=tuple(slices),
            config_fields=fields if whole else {},
            config_constants={"head_dim": sizes.dim} if whole and fields else {},
            storable=storable if whole else (),
            width_group="num_key_value_heads" if whole and fields else name,
            taps=taps,
            surgery=_obstacle(name, module, sizes, whole),
        )

    def tap(
        self, model: nn.Module, sites: Sequence[Site], taps: frozenset[Tap], handler: Handler
    ) -> AbstractContextManager[None]:
        """See `ArchitectureAdapter.tap`."""
        points = layer_points(model, [site for site in sites if "layer" in site.taps])
        for site in sites:
            sizes = attention(model.get_submodule(site.name))
            assert sizes is not None
            out = f"{site.name}.{sizes.out}"
            points.append(TapPoint(site=site, tap="neuron", module=out, at="input"))
            points.append(TapPoint(site=site, tap="down", module=out, at="output"))
        return tapped(model, points, taps, handler)


@dataclass(frozen=True, kw_only=True)
class KeyValueGroups(AttentionAdapter):
    """A unit is a key-value head with the query heads that read it."""

    def unit(self, found: Attention) -> bool:
        """See `AttentionAdapter.unit`."""
        return True


@dataclass(frozen=True, kw_only=True)
class Heads(AttentionAdapter):
    """A unit is a query head."""

    def unit(self, found: Attention) -> bool:
        """See `AttentionAdapter.unit`."""
        return found.per == 1


def _fields(config: Any, sizes: Attention) -> tuple[Mapping[str, int], tuple[int, ...]]:
    """The config fields that hold the number of heads, each with its value for one group, and the numbers of groups that the config takes;
    empty where no fields hold it, or it takes all."""
    heads, groups = getattr(config, "num_attention_heads", None), getattr(config, "num_key_value_heads", None)
    if heads != sizes.groups * sizes.per or groups not in ((sizes.groups, None) if sizes.per == 1 else (sizes.groups,)):
        return {}, ()
    fields = {"num_attention_heads": sizes.per} | ({"num_key_value_heads": 1} if groups is not None else {})
    numbers = tuple(width for width in range(1, sizes.groups + 1) if _takes(config, fields, width))
    return fields, () if len(numbers) == sizes.groups else numbers


def _takes(config: Any, fields: Mapping[str, int], width: int) -> bool:
    """Whether a config of this many groups is one that its family reads: some want the hidden size to be a multiple of the heads."""
    if not hasattr(config, "validate"):
        return True
    other = copy.deepcopy(config)
    try:
        for field, times in fields.items():
            setattr(other, field, width * times)
        other.validate()
    except Exception:
        return False
    return True


def _obstacle(name: str, module: Any, sizes: Attention, whole: bool) -> str | None:
    """Why the units of a site cannot be cut, as `Site.surgery` says it."""
    out: Any = child(module, sizes.out)
    if tuple(out.weight.shape) != features(out)[::-1]:
        return f"{name}.{sizes.out} holds packed weights ({type(out).__name__}): load the model in bfloat16"
    if not whole:
        return (
            f"{sizes.per} query heads share keys and values: --operator zero and scale keep them, --architecture kv-groups "
            "removes the whole group"
        )
    if counted := [word for word in COUNTS if isinstance(vars(module).get(word), int)]:
        return f"its module counts heads apart from its weights ({counted[0]}): --operator zero and scale keep them"
    return None
