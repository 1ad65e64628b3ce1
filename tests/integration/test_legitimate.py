"""Legitimate contrasts as a stream of an audit: the objective is the metric's margin, its slopes are autograd's, and held-out ones
are never read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fairprune_framework.api import LegitimateMargin, LegitimateSlopes, Needs, Observation, Outputs, Pass, Statistic
from fairprune_framework.api.interfaces import Plugin
from fairprune_framework.auditing.audit import audit
from fairprune_framework.auditing.demand import Demand, selecting
from fairprune_framework.contrasts.alignment import align_all, vocabularies
from fairprune_framework.functional.next_token import legitimate_margin
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.testing.tiny import tiny_contrasts, tiny_legitimate, tiny_model, tiny_tokenizer


@dataclass(frozen=True, kw_only=True)
class Slopes(Statistic):
    """Activation x gradient of the margin, and the margin."""

    name: str = "slopes"

    def passes(self, layers: int) -> Sequence[Pass]:
        return (Pass(), Pass(stream="legitimate", objective=LegitimateMargin()))

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        if obs.objective is None:
            return {}
        return {"product": obs.product_sums().unsqueeze(1), "margin": obs.objective.view(-1, 1, 1)}


class Asking(Plugin):
    def needs(self) -> Needs:
        return Needs(statistics=(Slopes(), LegitimateSlopes()))


def audited(contrasts: list[Any], max_tokens: int = 512) -> tuple[Any, Any, Any]:
    model, encoder = tiny_model("llama"), Encoder(tiny_tokenizer())
    architecture, aligned = recognise(model), align_all(contrasts, encoder)[0]
    values = {category: len(names) for category, names in vocabularies(contrasts).items()}
    demand = Demand.of([Asking()], len(architecture.layers) if hasattr(architecture, "layers") else 2)
    legitimate = selecting(aligned, "legitimate")
    statistics, _ = audit(
        model,
        architecture,
        selecting(aligned),
        values,
        demand,
        legitimate=legitimate,
        accelerator="cpu",
        micro_batch_tokens=max_tokens,
    )
    return model, legitimate, statistics


def test_the_margin_and_its_slopes() -> None:
    held = [replace(one, id=f"h{one.id}", template_id=f"h{one.template_id}", split="heldout") for one in tiny_legitimate()]
    model, legitimate, statistics = audited([*tiny_contrasts(), *tiny_legitimate(), *held])
    assert [one.id for one in legitimate] == ["tiny-legitimate-0", "tiny-legitimate-1"]
    assert statistics.legitimate_categories == ("trade",)
    assert statistics.counts["legitimate"] == (2,)
    layer = model.model.layers[1].mlp.down_proj
    margin, products = 0.0, []
    for contrast in legitimate:
        shown: list[Tensor] = []
        handle = layer.register_forward_pre_hook(lambda _m, args, shown=shown: shown.append(args[0]))
        rows = [model(input_ids=torch.tensor([tokens.ids])).logits[0, -1].log_softmax(-1) for tokens in contrast.variants]
        handle.remove()
        of = [[row[list(tokens)].logsumexp(0) for row in rows] for tokens in contrast.right]
        own = torch.stack([of[v][v] for v in range(len(rows))])
        others = torch.stack([sum(of[v][u] for u in range(len(rows)) if u != v) / (len(rows) - 1) for v in range(len(rows))])  # type: ignore[arg-type]
        value = (own - others).mean()
        assert float(value.detach()) == pytest.approx(legitimate_margin(torch.stack(rows).detach(), contrast.right), abs=1e-5)
        margin += float(value.detach())
        pairs = zip(shown, torch.autograd.grad(value, shown), strict=True)
        products.append(torch.stack([(act * grad)[0].sum(0).double() for act, grad in pairs]).sum(0))
    found = statistics.of("legitimate", "model.layers.1.mlp", 0)
    assert float(found["slopes.margin"]) == pytest.approx(margin, abs=1e-5)
    slope_CN = torch.stack(products)
    torch.testing.assert_close(found["slopes.product"][0], slope_CN.sum(0), rtol=1e-4, atol=1e-6)
    moments = torch.stack([slope_CN.sum(0), slope_CN.square().sum(0), torch.full(slope_CN.shape[1:], 2.0).double()])
    torch.testing.assert_close(found["legitimate-slopes.moments"], moments, rtol=1e-4, atol=1e-6)


def test_what_stands_together_does_not_matter() -> None:
    """Contrasts of two and three variants, with one and two right words, together and each alone: no NaN from what is absent."""
    every = [*tiny_contrasts(), *tiny_legitimate()]
    together, alone = audited(every)[2], audited(every, max_tokens=1)[2]
    for key, value in together.sums.items():
        if key.startswith("legitimate/"):
            assert torch.isfinite(value).all()
            torch.testing.assert_close(value, alone.sums[key], rtol=1e-5, atol=1e-7)


def test_the_margin_wants_right_words() -> None:
    some: Any = torch.zeros(1, 2, 3)
    outputs = Outputs(
        logits=some,
        tokens=some.long(),
        mask=some.bool(),
        attribute=some[..., 0].long(),
        lean=some[..., 0].long(),
        rare=some.bool(),
    )
    with pytest.raises(AssertionError, match="stream `legitimate`"):
        LegitimateMargin()(outputs)
