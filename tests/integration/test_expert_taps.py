"""Taps of a layer reach every expert of it, with all tokens, also where the expert saw a few of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from fairprune_framework.api import BiasScorer, Needs, Pass, SiteContext, Statistic, generalised_js
from fairprune_framework.auditing.audit import audit
from fairprune_framework.auditing.demand import Demand, selecting
from fairprune_framework.contrasts.alignment import align_all, vocabularies
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.testing.tiny import tiny_contrasts, tiny_model, tiny_tokenizer


@dataclass(frozen=True)
class Divergence:
    """Divergence of next-token distributions."""

    def __call__(self, out: Any) -> Tensor:
        return generalised_js(out.logits, out.mask.any(-1))


@dataclass(frozen=True, kw_only=True)
class LayerSums(Statistic):
    """Sums over all tokens of what the layer shows, and over the expert's own of its neurons."""

    name: str = "layer-sums"
    taps: frozenset[Any] = frozenset({"neuron", "mlp_input", "layer"})
    slope: bool = False

    def passes(self, layers: int) -> Any:
        return (Pass(objective=Divergence()),) if self.slope else (Pass(),)

    def summands(self, obs: Any) -> Any:
        found = {tap: obs.acts[tap].double().sum((1, 2)).unsqueeze(1) for tap in self.taps}
        if self.slope:
            found |= {f"d-{tap}": obs.grads[tap].double().sum((1, 2)).unsqueeze(1) for tap in self.taps}
        return found


@dataclass(frozen=True, kw_only=True)
class Reads(BiasScorer):
    """Asks for those sums."""

    slope: bool = False

    def needs(self) -> Needs:
        return Needs(statistics=(LayerSums(slope=self.slope),))

    def score(self, at: SiteContext) -> Tensor:
        raise NotImplementedError


@pytest.mark.parametrize("slope", [False, True])
@pytest.mark.parametrize("tokens", [32, 512])
def test_every_expert_is_given_what_its_layer_shows(slope: bool, tokens: int) -> None:
    model: Any = tiny_model("mixtral")
    architecture, every = recognise(model), tiny_contrasts()
    contrasts = selecting(align_all(every, Encoder(tiny_tokenizer()))[0])
    values = {category: len(names) for category, names in vocabularies(every).items()}
    demand = Demand.of([Reads(slope=slope)], 2)
    statistics, _ = audit(model, architecture, contrasts, values, demand, accelerator="cpu", micro_batch_tokens=tokens)
    seen: dict[int, list[Tensor]] = {0: [], 1: []}
    for layer, shown in seen.items():
        hook = lambda _m, _a, out, shown=shown: shown.append(out[0] if isinstance(out, tuple) else out)  # noqa: E731
        model.model.layers[layer].register_forward_hook(hook)
    for text in (text for contrast in contrasts for text in contrast.variants):
        with torch.no_grad():
            model(input_ids=torch.tensor([text.ids]))
    expected = {layer: sum(one.double().reshape(-1, one.shape[-1]).sum(0) for one in shown) for layer, shown in seen.items()}
    reached = 0
    for name, site in architecture.sites.items():
        if not statistics.sums.get(f"contrasts/{name}/observed", torch.zeros(1)).sum():
            continue
        found = statistics.of("contrasts", name, None)
        torch.testing.assert_close(found["layer-sums.layer"][0], expected[site.layer], rtol=1e-4, atol=1e-4)
        others = [each for each in architecture.sites.values() if each.layer == site.layer]
        for other in others:
            beside = statistics.of("contrasts", other.name, None)
            for output in ("mlp_input", "layer", *(("d-layer", "d-mlp_input") if slope else ())):
                torch.testing.assert_close(found[f"layer-sums.{output}"], beside[f"layer-sums.{output}"])
        reached += 1
    assert reached > 4
