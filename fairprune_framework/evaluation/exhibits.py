"""What the report shows beside numbers: which contrasts move a neuron, token representations of every layer, generations.

Written by `evaluate` as `exhibits.safetensors` and `exhibits.json`, so that `report` never loads a model.

- *units*: up to 32 planned neurons (without a plan: of all) of the highest bias, each with the ten contrasts that move it most
  (`metrics.movement`). Measured in the original model, over at most `MOST_CONTRASTS` contrasts, evenly spaced in the set.
- *projections*: for one contrast per category, the one of median divergence among the held-out ones (or all), where the outputs of
  attention and MLP of every layer lie, for the first 64 tokens of each variant, before and after: in the plane of the first two principal
  components before, with the distances between variants. From float16: what it cannot hold is cut to its largest number and counted.

Tensors: `<part>/<projection>/<tap>` float32 for each part of `functional.planes.Planes`: what is drawn, not the representations, which
take a hundred times the room. Source: figures 2 and 3 of the Fairness Pruning article.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairprune_framework.api.types import Scores
from fairprune_framework.contrasts.alignment import AlignedContrast
from fairprune_framework.contrasts.prompts import PromptSet
from fairprune_framework.contrasts.schema import Contrast
from fairprune_framework.evaluation.metrics.movement import MovementReader, described_movement, measure_movements
from fairprune_framework.evaluation.metrics.outputs import MOST_TOKENS, OutputReader, Outputs
from fairprune_framework.functional.planes import planes
from fairprune_framework.models.architecture import Architecture
from fairprune_framework.models.loaded import LoadedModel
from fairprune_framework.utilities.progress import bar

FORMAT = "fairprune-exhibits/2"
FILES = ("exhibits.safetensors", "exhibits.json")
MOST_UNITS, MOST_MOVING, MOST_CONTRASTS = 32, 10, 2048


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
    shown: Iterable[AlignedContrast],
    before: OutputReader,
    after: OutputReader | None,
    watched: Watched,
    units: Sequence[Mapping[str, Any]],
) -> Exhibits:
    """Make the exhibits of a run, without its generations.

    Args:
        shown: see `typical`.
        before: has seen them in the original model.
        after: has seen them in what the plan made of it, or in another model, which is shown if its layers are alike; None where one
            model alone is evaluated.
        units: see `Watched.moving`.
    """
    texts = prompts.texts
    projections, tensors = [], dict[str, Tensor]()
    for index, contrast in enumerate(shown):
        outputs = {"before": before.outputs.get(contrast.id, Outputs())}
        if after is not None and (changed := after.outputs.get(contrast.id, Outputs())).shapes == outputs["before"].shapes:
            outputs["after"] = changed
        projections.append(projection(loaded.tokenizer, contrast, texts[contrast.id], outputs))
        tensors |= drawn(index, projections[-1]["variants"], outputs)
    described = {
        "format": FORMAT,
        "contrasts": {"looked_at": len(watched.reader.contrasts), "of": len(prompts.aligned)},
        "units": list(units),
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
    chosen = []
    for group in _candidates(contrasts):
        group.sort(key=lambda contrast: (divergence[contrast.id], contrast.id))
        chosen.append(group[(len(group) - 1) // 2])
    return chosen


def certain(contrasts: Sequence[AlignedContrast]) -> list[AlignedContrast]:
    """Those that are typical whatever their divergence: no other of their category can be."""
    return [group[0] for group in _candidates(contrasts) if len(group) == 1]


def _candidates(contrasts: Sequence[AlignedContrast]) -> list[list[AlignedContrast]]:
    """Of each category those that may be typical; categories in their order, controls last."""
    groups: dict[tuple[bool, str], list[AlignedContrast]] = {}
    for contrast in contrasts:
        groups.setdefault((contrast.control, contrast.category), []).append(contrast)
    found = [group for _, group in sorted(groups.items(), key=lambda item: item[0])]
    return [[contrast for contrast in group if contrast.split == "heldout"] or group for group in found]


def projection(tokenizer: Any, contrast: AlignedContrast, text: Contrast, outputs: Mapping[str, Outputs]) -> dict[str, Any]:
    """One contrast as it is described: its texts, and which layers are shown.

    Args:
        outputs: "before" and, where there is one, "after" -> those of a model.
    """
    rows = [list(tokens.ids[:MOST_TOKENS]) for tokens in contrast.variants]
    variants = [
        {
            "attribute": variant.attribute,
            "text": variant.text,
            "tokens": [tokenizer.decode([token]) for token in ids],
            "start": min(tokens.start, len(ids)),
            "end": min(tokens.end, len(ids)),
            "all_tokens": len(tokens.ids),
        }
        for variant, tokens, ids in zip(text.variants, contrast.variants, rows, strict=True)
    ]
    return {
        "contrast": contrast.id,
        "category": contrast.category,
        "control": contrast.control,
        "split": contrast.split,
        "variants": variants,
        "layers": {tap: sorted(by_layer) for each in outputs.values() for tap, by_layer in each.tensors.items()},
        "cut_to_float16": sum(each.cut for each in outputs.values()),
    }


def drawn(index: int, variants: Sequence[Mapping[str, Any]], outputs: Mapping[str, Outputs]) -> dict[str, Tensor]:
    """What the chart shows of one contrast, by the names of the file.

    Args:
        index: of the projection.
        variants: as `projection` describes them.
        outputs: see `projection`.
    """
    values = {when: each.stacked() for when, each in outputs.items()}
    return {
        f"{part}/{index}/{tap}": torch.from_numpy(value).float()
        for tap, before in values["before"].items()
        for part, value in planes(before, values.get("after", {}).get(tap), variants).parts.items()
    }
