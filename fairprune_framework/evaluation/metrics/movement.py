"""How far a contrast moves a neuron: the mean over aligned slots of the standard deviation of its activation over the variants.

The standard deviation is that of the population (division by the number of variants), so that the movement is on one scale for contrasts
of two and of many variants, where a range would grow with their number; its square, before the mean over slots, is what the scorer
`variance` adds up. A neuron of several columns has the mean over its columns. Source: this project, docs/method/variance.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fairprune_framework.api.decoders import text_decoder
from fairprune_framework.api.interfaces import Pass
from fairprune_framework.api.types import Site, Tap
from fairprune_framework.auditing.batches import compose
from fairprune_framework.auditing.observation import Geometry, observe
from fairprune_framework.contrasts.alignment import AlignedContrast
from fairprune_framework.contrasts.schema import Contrast
from fairprune_framework.models.architecture import Architecture


@dataclass(frozen=True, kw_only=True)
class Movement:
    """One contrast and one neuron."""

    id: str
    """Of the contrast."""
    movement: float
    """Unit: activation."""
    means: tuple[float, ...]
    """Of each variant, over its slots; unit: activation."""


def spread_over_variants(acts_CVSK: Tensor, mask_CVS: Tensor) -> Tensor:
    """Mean over slots of the standard deviation over the variants that have the slot: `(C, V, S, K)`, `(C, V, S)` bool -> `(C, K)`.

    >>> spread_over_variants(torch.tensor([1.0, 5.0]).reshape(1, 2, 1, 1), torch.ones(1, 2, 1).bool())
    tensor([[2.]])
    """
    mask_CVS1 = mask_CVS.unsqueeze(-1)
    count_CS1 = mask_CVS1.sum(1)
    centre_CSK = acts_CVSK.where(mask_CVS1, 0.0).sum(1) / count_CS1.clamp_min(1)
    square_CVSK = (acts_CVSK - centre_CSK.unsqueeze(1)).square().where(mask_CVS1, 0.0)
    deviation_CSK = (square_CVSK.sum(1) / count_CS1.clamp_min(1)).sqrt()
    return deviation_CSK.sum(1) / (count_CS1 > 0).sum(1).clamp_min(1)


class MovementReader:
    """Reads the movements of some neurons from the activations of micro-batches, in float64.

    Args:
        architecture: of the model that computes them.
        units: site -> indices of neurons.
        contrasts: those that are looked at; others of a micro-batch are passed over.
    """

    def __init__(
        self, architecture: Architecture, units: Mapping[str, Sequence[int]], contrasts: Sequence[AlignedContrast]
    ) -> None:
        self.contrasts, self._units = tuple(contrasts), units
        self._wanted = {contrast.id for contrast in contrasts}
        self.sites = [architecture.sites[name] for name, chosen in units.items() if len(chosen)]
        """Those whose neuron tap is needed."""
        self._columns = {site.name: _columns(site, units[site.name]) for site in self.sites}
        self._movements: dict[tuple[str, int], list[Movement]] = {
            (name, unit): [] for name, chosen in units.items() for unit in chosen
        }

    @property
    def complete(self) -> bool:
        """Every contrast was seen by every neuron."""
        return all(len(each) == len(self.contrasts) for each in self._movements.values())

    def read(self, site: Site, acts: Tensor, rows: Tensor | None, geometry: Geometry) -> None:
        """Take the values of the neuron tap of one site in one micro-batch; other sites are passed over."""
        if site.name not in self._columns:
            return
        batch = geometry.batch
        chosen = acts.index_select(1, self._columns[site.name].to(acts.device)).double()
        observation = observe(site, {"neuron": chosen}, rows, geometry, Pass(), {})
        acts_CVSK, mask_CVS = observation.aligned["neuron"], observation.aligned_mask
        spread_CK = spread_over_variants(acts_CVSK, mask_CVS)
        mean_CVK = acts_CVSK.where(mask_CVS.unsqueeze(-1), 0.0).sum(2) / mask_CVS.sum(2).clamp_min(1).unsqueeze(-1)
        spread_CN = spread_CK.reshape(len(spread_CK), -1, site.unit_width).mean(2).tolist()
        mean_CVN = mean_CVK.reshape(*mean_CVK.shape[:2], -1, site.unit_width).mean(3).cpu()
        for row, name in enumerate(batch.ids):
            if name not in self._wanted:
                continue
            mean_VN = mean_CVN[row, batch.present[row].cpu()]
            for index, unit in enumerate(self._units[site.name]):
                means = tuple(mean_VN[:, index].tolist())
                self._movements[site.name, unit].append(Movement(id=name, movement=spread_CN[row][index], means=means))

    @property
    def movements(self) -> dict[tuple[str, int], list[Movement]]:
        """(site, index) -> the contrasts seen, the furthest moved first, equal ones by id."""
        return {unit: sorted(each, key=lambda one: (-one.movement, one.id)) for unit, each in self._movements.items()}


@torch.inference_mode()
def measure_movements(
    model: nn.Module,
    architecture: Architecture,
    reader: MovementReader,
    values: Mapping[str, int],
    max_tokens: int = 512,
    progress: Callable[[int], None] = lambda contrasts: None,
) -> None:
    """Stream the reader's contrasts past its neurons, in one pass that computes nothing else.

    Args:
        values: category -> number of values, as the batches need it.
        max_tokens: padded tokens per forward.
    """
    state: dict[str, Geometry] = {}

    def take(site: Site, tap: Tap, acts: Tensor, rows: Tensor | None) -> None:
        reader.read(site, acts, rows, state["geometry"])

    device = next(model.parameters()).device
    with architecture.adapter.tap(model, reader.sites, frozenset({"neuron"}), take):
        for cpu_batch in compose(reader.contrasts, values, max_tokens):
            batch = cpu_batch.to(device)
            state["geometry"] = Geometry(batch)
            mask = batch.attention_mask if batch.padded else None
            text_decoder(model)(input_ids=batch.input_ids, attention_mask=mask, use_cache=False)
            progress(len(batch.ids))


def described_movement(contrast: Contrast, movement: Movement) -> dict[str, Any]:
    """The contrast, its variants with their means, and how far it moves the neuron, as JSON values."""
    return {
        "id": contrast.id,
        "category": contrast.category,
        "control": contrast.control,
        "split": contrast.split,
        "movement": movement.movement,
        "variants": [
            {"attribute": variant.attribute, "text": variant.text, "mean": mean}
            for variant, mean in zip(contrast.variants, movement.means, strict=True)
        ],
    }


def _columns(site: Site, units: Sequence[int]) -> Tensor:
    """The columns of neurons in the neuron tap, `(K,)`."""
    first = torch.as_tensor(list(units), dtype=torch.long).unsqueeze(-1) * site.unit_width
    return (first + torch.arange(site.unit_width)).reshape(-1)
