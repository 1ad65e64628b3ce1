"""Mean activations: what the operator `mean` holds neurons at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fairprune_framework.api.decoders import text_decoder
from fairprune_framework.api.types import Site, Tap
from fairprune_framework.models.architecture import Architecture


@torch.inference_mode()
def mean_activations(model: nn.Module, architecture: Architecture, documents: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """site -> (N, width) float64 on the CPU: the mean of each column of each unit at the input of the output projection.

    Over all tokens of the documents, of an expert over those that are routed to it (0 where none is). Computed in the dtype of the
    model and summed in float64, one document at a time, so that no padding takes part.

    Args:
        documents: token ids; made before the call, so that text which the model itself writes does not pass the tap.
    """
    sites = architecture.sites
    sums = {name: torch.zeros(site.units * site.unit_width, dtype=torch.float64) for name, site in sites.items()}
    tokens = dict.fromkeys(sites, 0)

    def add(site: Site, tap: Tap, values: Tensor, rows: Tensor | None) -> None:
        sums[site.name] += values.double().sum(0).cpu()
        tokens[site.name] += len(values)

    device = next(model.parameters()).device
    with architecture.adapter.tap(model, list(sites.values()), frozenset({"neuron"}), add):
        for document in documents:
            text_decoder(model)(input_ids=torch.tensor([document], device=device), use_cache=False)
    return {
        name: (total / max(tokens[name], 1)).reshape(sites[name].units, sites[name].unit_width) for name, total in sums.items()
    }
