"""What the report shows beside numbers: which contrasts move a neuron, token representations of every layer, generations.

Written by `evaluate` as `exhibits.safetensors` and `exhibits.json`, so that `report` never loads a model.

- *units*: up to 32 planned neurons (without a plan: of all) of the highest bias, each with the ten contrasts that move it most
  (`metrics.movement`). Measured in the original model, over at most `MOST_CONTRASTS` contrasts, evenly spaced in the set.
- *projections*: for one contrast per category, the one of median divergence among the held-out ones (or all), the outputs of attention
  and MLP of every layer, for the first 64 tokens of each variant, before and after, in float16; what float16 cannot hold is cut to its
  largest number and counted.

Tensors: `before/<projection>/<tap>` and `after/<projection>/<tap>`, `(L, R, H)` float16; the rows R are the tokens of the first variant,
then of the second, and so on. Source: figures 2 and 3 of the Fairness Pruning article.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fairprune_framework.api.decoders import text_decoder
from fairprune_framework.api.types import Scores, Site, Tap
from fairprune_framework.calibration.text import padded
from fairprune_framework.contrasts.alignment import AlignedContrast
from fairprune_framework.contrasts.prompts import PromptSet
from fairprune_framework.contrasts.schema import Contrast
from fairprune_framework.evaluation.metrics.movement import MovementReader, described_movement, measure_movements
from fairprune_framework.models.architecture import Architecture
from fairprune_framework.models.loaded import LoadedModel
from fairprune_framework.utilities.progress import bar

FORMAT = "fairprune-exhibits/1"
FILES = ("exhibits.safetensors", "exhibits.json")
MOST_UNITS, MOST_MOVING, MOST_TOKENS, MOST_CONTRASTS = 32, 10, 64, 2048
TAPS: tuple[Tap, ...] = ("attention", "mlp")


@dataclass(frozen=True, kw_only=True)
class Exhibits:
    """The content of both files."""

    described: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def save(self, folder: Path) -> None:
        """Write both files, each atomically, the tensors first."""
        from fairprune_framework.utilities.files import write_json, write_tensors

        write_tensors(folder / FILES[0], self.tensors)
        write_json(folder / FILES[1], dict(self.described))


@dataclass(frozen=True, kw_only=True)
class After:
    """What the plan made of the model: another one, or the same inside a context. None where one model alone is evaluated."""

    model: nn.Module
    architecture: Architecture
    change: Callable[[], AbstractContextManager[None]]


class Watched:
    """The units to show, and what reads their movements: in the forward that measures the original model, or in one of its own.

    Args:
        planned: site -> units of the plan.
    """

    def __init__(
        self,
        architecture: Architecture,
        prompts: PromptSet,
        planned: Mapping[str, Sequence[int]],
        scores: Scores | None,
    ) -> None:
        aligned = prompts.aligned
        self.units = _units(architecture, planned, scores)
        """Each with its site, layer, index and scores."""
        of_site: dict[str, list[int]] = {}
        for unit in self.units:
            of_site.setdefault(unit["site"], []).append(unit["unit"])
        self.reader = MovementReader(architecture, of_site, aligned[:: max(1, -(-len(aligned) // MOST_CONTRASTS))])

    def moving(self, loaded: LoadedModel, prompts: PromptSet, max_tokens: int) -> list[dict[str, Any]]:
        """The units with the contrasts that move each most, after a pass over the contrasts if they were not read before."""
        if not self.reader.complete:
            with bar("exhibits", len(self.reader.contrasts), "contrasts") as advance:
                measure_movements(loaded.model, loaded.architecture, self.reader, prompts.values, max_tokens, advance)
        moved, texts = self.reader.movements, prompts.texts
        return [
            unit
            | {"contrasts": [described_movement(texts[one.id], one) for one in moved[unit["site"], unit["unit"]][:MOST_MOVING]]}
            for unit in self.units
        ]


def collect(
    loaded: LoadedModel,
    prompts: PromptSet,
    divergence: Mapping[str, float],
    after: After | None,
    watched: Watched,
    max_tokens: int,
) -> Exhibits:
    """Make the exhibits of a run, without its generations.

    Args:
        divergence: id -> next-token divergence before, of every contrast.
        max_tokens: padded tokens per forward.
    """
    texts, aligned = prompts.texts, prompts.aligned
    units = watched.moving(loaded, prompts, max_tokens)
    projections, tensors = [], dict[str, Tensor]()
    for index, contrast in enumerate(typical(aligned, divergence)):
        shown, outputs = project(loaded, contrast, texts[contrast.id], after)
        projections.append(shown)
        tensors |= {f"{when}/{index}/{tap}": value for (when, tap), value in outputs.items()}
    described = {
        "format": FORMAT,
        "contrasts": {"looked_at": len(watched.reader.contrasts), "of": len(aligned)},
        "units": units,
        "projections": projections,
        "generations": [],
    }
    return Exhibits(described=described, tensors=tensors)


# -- units -----------------------------------------------------------------------------------------------------------------


def _units(architecture: Architecture, planned: Mapping[str, Sequence[int]], scores: Scores | None) -> list[dict[str, Any]]:
    """The units to show, highest bias first; without scores the planned ones in order of their sites."""
    chosen: list[dict[str, Any]] = []
    for name, site in architecture.sites.items():
        bias = None if scores is None else scores.bias[name]
        if any(planned.values()):
            units = list(planned.get(name, ()))
        else:
            units = [] if bias is None else bias.topk(min(MOST_UNITS, site.units)).indices.tolist()
        for unit in units:
            chosen.append(
                {
                    "site": name,
                    "layer": site.layer,
                    "unit": unit,
                    "planned": unit in planned.get(name, ()),
                    "bias": None if bias is None else float(bias[unit]),
                    "importance": None if scores is None else float(scores.importance[name][unit]),
                }
            )
    if scores is not None:
        chosen.sort(key=lambda unit: (-unit["bias"], unit["layer"], unit["site"], unit["unit"]))
    return chosen[:MOST_UNITS]


# -- projections -----------------------------------------------------------------------------------------------------------


def typical(contrasts: Sequence[AlignedContrast], divergence: Mapping[str, float]) -> list[AlignedContrast]:
    """Of each category the held-out contrast of median divergence (of all, where none is held out); the lower of two medians."""
    groups: dict[tuple[bool, str], list[AlignedContrast]] = {}
    for contrast in contrasts:
        groups.setdefault((contrast.control, contrast.category), []).append(contrast)
    chosen = []
    for _, group in sorted(groups.items(), key=lambda item: item[0]):
        group = [contrast for contrast in group if contrast.split == "heldout"] or group
        group.sort(key=lambda contrast: (divergence[contrast.id], contrast.id))
        chosen.append(group[(len(group) - 1) // 2])
    return chosen


def project(
    loaded: LoadedModel, contrast: AlignedContrast, text: Contrast, after: After | None
) -> tuple[dict[str, Any], dict[tuple[str, str], Tensor]]:
    """One contrast: what it is, and the tensors by ("before" or "after", tap)."""
    rows = [list(tokens.ids[:MOST_TOKENS]) for tokens in contrast.variants]
    tensors: dict[tuple[str, str], Tensor] = {}
    layers: dict[str, list[int]] = {}
    cut = 0
    with_plan = [] if after is None else [("after", after.model, after.architecture, after.change)]
    for when, model, architecture, change in [("before", loaded.model, loaded.architecture, None), *with_plan]:
        if change is None:
            outputs = _outputs(model, architecture, rows)
        else:
            with change():
                outputs = _outputs(model, architecture, rows)
        for tap, by_layer in outputs.items():
            layers[tap] = sorted(by_layer)
            value_LRH = torch.stack([by_layer[layer] for layer in layers[tap]])
            largest = torch.finfo(torch.float16).max
            cut += int((value_LRH.abs() > largest).sum())
            tensors[when, tap] = value_LRH.clamp(-largest, largest).half()
    variants = [
        {
            "attribute": variant.attribute,
            "text": variant.text,
            "tokens": [loaded.tokenizer.decode([token]) for token in ids],
            "start": min(tokens.start, len(ids)),
            "end": min(tokens.end, len(ids)),
            "all_tokens": len(tokens.ids),
        }
        for variant, tokens, ids in zip(text.variants, contrast.variants, rows, strict=True)
    ]
    shown = {
        "contrast": contrast.id,
        "category": contrast.category,
        "control": contrast.control,
        "split": contrast.split,
        "variants": variants,
        "layers": layers,
        "cut_to_float16": cut,
    }
    return shown, tensors


@torch.inference_mode()
def _outputs(model: nn.Module, architecture: Architecture, rows: Sequence[Sequence[int]]) -> dict[str, dict[int, Tensor]]:
    """tap -> layer -> `(R, H)` on the CPU: outputs at the tokens of all rows, one row after the other."""
    ids, mask = padded(rows)
    kept = mask.reshape(-1).bool()
    outputs: dict[str, dict[int, Tensor]] = {}

    def take(site: Site, tap: Tap, values: Tensor, routed: Tensor | None) -> None:
        if routed is None and values.shape[0] == len(kept):  # the output of the layer's block, not of one expert
            outputs.setdefault(tap, {}).setdefault(site.layer, values.float().cpu()[kept])

    device = next(model.parameters()).device
    with architecture.adapter.tap(model, list(architecture.sites.values()), frozenset(TAPS), take):
        text_decoder(model)(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
    return outputs
