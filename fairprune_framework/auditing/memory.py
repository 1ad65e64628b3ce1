"""How much memory the sums of an audit will take, known before it begins: each statistic is asked for its shapes with no contrast."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fairprune_framework.api.declared import earlier, passes_at
from fairprune_framework.api.decoders import text_config
from fairprune_framework.api.interfaces import Observation, Pass, Statistic
from fairprune_framework.api.types import Site, Stream, Tap
from fairprune_framework.auditing.demand import Demand
from fairprune_framework.auditing.statistics import CALIBRATION, CLUSTERS, CONTRASTS
from fairprune_framework.errors import UserError
from fairprune_framework.surgery.slices import LazyWeights, weights_of
from fairprune_framework.utilities.aside import plugin_call

WORDS = 16
"""Bytes of one number of a sum: two float64."""
SHARE = 1 / 3
"""Of the memory that sums may take: those of a micro-batch, and reading them out, take twice as much again."""
OF_UNITS: frozenset[Tap] = frozenset({"gate", "up", "neuron"})


def sums_bytes(
    demand: Demand, model: nn.Module, sites: Sequence[Site], groups: Mapping[Stream, int], values: Mapping[Stream, int]
) -> dict[Statistic, int]:
    """Statistic -> bytes of its sums over all sites; of one that cannot be asked without a contrast, 0.

    Args:
        groups: stream -> how many categories it has; calibration text has one.
        values: stream -> size of the largest vocabulary of attribute values of its categories; 1 where it is not named.
    """
    layers = len({site.layer for site in sites})
    numbers: dict[tuple[Any, ...], dict[str, tuple[int, int]]] = {}
    found: dict[Statistic, int] = {}
    for statistic in demand.statistics:
        outputs: dict[tuple[Stream, str, str], int] = {}
        for pass_ in passes_at(statistic, layers):
            clusters = CLUSTERS if demand.clusters and pass_.stream == CONTRASTS else 1
            count = (1 if pass_.stream == CALIBRATION else groups.get(pass_.stream, 0)) * clusters
            for site in sites:
                if pass_.layer not in (None, site.layer):
                    continue
                shape = (statistic, pass_, site.units, site.unit_width, site.taps)
                if shape not in numbers:
                    before = {
                        f"{each.name}.{output}": torch.zeros((count, *size), dtype=torch.float64)
                        for each in earlier(statistic)
                        for output, size in numbers.get((each, *shape[1:]), {}).items()
                    }
                    numbers[shape] = _shapes(statistic, pass_, model, site, values.get(pass_.stream, 1), before)
                for output, (rows, columns) in numbers[shape].items():  # passes of one stream add to one sum
                    outputs[pass_.stream, site.name, output] = WORDS * count * rows * columns
        found[statistic] = sum(outputs.values())
    return found


def _shapes(
    statistic: Statistic, pass_: Pass, model: nn.Module, site: Site, values: int, before: Mapping[str, Tensor]
) -> dict[str, tuple[int, int]]:
    """Output -> (R, K): from an observation of no contrast, or of a small one where a statistic needs something to look at."""
    for contrasts in (0, 1):
        try:
            with plugin_call("it"):
                outputs = statistic.summands(_made_up(contrasts, statistic, pass_, model, site, values, before))
            return {name: (value.shape[1], value.shape[2]) for name, value in outputs.items() if len(value.shape) == 3}
        except Exception:  # what is wrong with it, if anything, the audit says
            continue
    return {}


def _made_up(
    contrasts: int, statistic: Statistic, pass_: Pass, model: nn.Module, site: Site, values: int, before: Mapping[str, Tensor]
) -> Observation:
    """Two variants of two tokens, all zero."""
    hidden = int(getattr(text_config(model), "hidden_size", 0) or 0)
    kind = next((parameter.dtype for parameter in model.parameters()), torch.float32)
    wide = torch.promote_types(kind, torch.float32)
    per_token, per_variant = partial(torch.zeros, contrasts, 2, 2), partial(torch.zeros, contrasts, 2, dtype=torch.long)
    per_contrast = partial(torch.zeros, contrasts, dtype=torch.long)
    seen: list[Tap] = ["neuron", *(statistic.taps & site.taps)]
    acts: dict[Tap, Tensor] = {}
    for tap in seen:
        acts[tap] = per_token(site.units * site.unit_width if tap in OF_UNITS else hidden, dtype=kind)
    mask = per_token(dtype=torch.bool).fill_(True)
    return Observation(
        acts=acts,
        grads={} if pass_.objective is None else acts,
        mask=mask,
        aligned={tap: value.double() for tap, value in acts.items()},
        slots={tap: value.to(wide) for tap, value in acts.items()},
        aligned_variance={tap: value[:, 0].to(wide) for tap, value in acts.items()},
        aligned_mask=mask,
        slot_weight=torch.full((contrasts, 2), 0.5, dtype=torch.float64),
        reached=torch.ones(contrasts, 1, 1, dtype=torch.float64),
        attribute=per_variant(),
        values=values,
        equal_length=per_contrast().bool(),
        weights=LazyWeights(partial(weights_of, model, site, torch.device("cpu"))),
        pass_=pass_,
        objective=None if pass_.objective is None else per_contrast().double(),
        site=site,
        tokens=per_token(dtype=torch.long),
        lean=per_variant(),
        cluster=per_contrast(),
        category=per_contrast(),
        before=before,
    )


def refuse_large(sizes: Mapping[Statistic, int], device: torch.device) -> None:
    """Raise `UserError` where the sums take more than a third of the memory of the device that holds them."""
    total, limit = sum(sizes.values()), SHARE * memory_of(device)
    if total > limit:
        raise UserError(
            f"the sums of this audit would take {in_words(sizes)}; on this machine they may take {limit / 1e9:.1f} GB, a third of "
            "its memory. Take a scorer that sums less, fewer categories, or a larger machine"
        )


def in_words(sizes: Mapping[Statistic, int]) -> str:
    """The memory that sums take, and which statistic takes most of it."""
    largest = max(sizes, key=lambda statistic: sizes[statistic], default=None)
    text = f"{sum(sizes.values()) / 1e9:.1f} GB"
    return text if largest is None else f"{text}, {sizes[largest] / 1e9:.1f} GB of it for {largest.name!r}"


def memory_of(device: torch.device) -> float:
    """All memory of a device, or of this machine, in bytes."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
