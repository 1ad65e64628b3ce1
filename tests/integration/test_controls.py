"""Specificity: a score that compares demographic contrasts with the controls of `select`, from one audit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fairprune_framework.api import (
    BiasScorer,
    Choice,
    ImportanceScorer,
    Needs,
    Pass,
    SelectionPolicy,
    SiteContext,
    Statistic,
    UserError,
    eligible,
    select_top,
)
from fairprune_framework.auditing.audit import audit
from fairprune_framework.auditing.demand import Demand, selecting
from fairprune_framework.contrasts.alignment import align_all, vocabularies
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.selection.contexts import context
from fairprune_framework.selection.scoring import score
from fairprune_framework.testing.tiny import tiny_contrasts, tiny_model, tiny_tokenizer


@dataclass(frozen=True, kw_only=True)
class Spread(Statistic):
    """Mean over slots of the variance over the variants, of demographic contrasts and of controls."""

    name: str = "controlled-spread"

    def passes(self, layers: int) -> Any:
        return (Pass(), Pass(stream="controls"))

    def summands(self, obs: Any) -> Any:
        return {"variance": obs.slot_weight.unsqueeze(1) @ obs.aligned_variance["neuron"].double()}


@dataclass(frozen=True, kw_only=True)
class Specific(BiasScorer):
    """Variance over demographic words over variance over neutral words."""

    def needs(self) -> Needs:
        return Needs(statistics=(Spread(),))

    def score(self, at: SiteContext) -> Tensor:
        control = at.of("controls")
        neutral = control.sums["controlled-spread.variance"][0] / control.count
        return at.sums["controlled-spread.variance"][0] / at.count / (neutral + 1e-12)


@dataclass(frozen=True, kw_only=True)
class Still(ImportanceScorer):
    """Variance over neutral words: what a neuron does for language at large."""

    def needs(self) -> Needs:
        return Needs(statistics=(Spread(),))

    def score(self, at: SiteContext) -> Tensor:
        return at.of("controls").sums["controlled-spread.variance"][0]


@dataclass(frozen=True, kw_only=True)
class MostSpecific(SelectionPolicy):
    """The highest ratio of both variances, whatever the scores."""

    def needs(self) -> Needs:
        return Needs(statistics=(Spread(),))

    def select(self, scores: Any, budget: Any, context: Any) -> Choice:
        ratio = {}
        for name in scores.sites:
            demographic, control = (
                context.at(name).of(stream).sums["controlled-spread.variance"][0] for stream in ("contrasts", "controls")
            )
            ratio[name] = demographic / (control + 1e-12)
        return select_top(scores, budget, ratio, eligible(scores, budget))


def by_hand(contrasts: Any, model: Any, site: str) -> Tensor:
    """Sum over contrasts of the variance of a layer's neurons, from plain forwards."""
    seen: dict[str, Tensor] = {}
    handle = model.get_submodule(f"{site}.down_proj").register_forward_pre_hook(
        lambda _m, args: seen.update(acts=args[0][0].detach().double())
    )
    total = torch.zeros(48, dtype=torch.float64)
    for contrast in contrasts:
        rows = []
        for tokens in contrast.variants:
            model(input_ids=torch.tensor([tokens.ids]))
            acts = seen["acts"]
            rows.append(torch.cat([acts[tokens.start : tokens.end].mean(0, keepdim=True), acts[tokens.end :]]))
        total += torch.stack(rows).var(0, correction=0).mean(0)
    handle.remove()
    return total


def test_sums_of_controls_are_those_of_plain_forwards() -> None:
    model: Any = tiny_model("llama")
    architecture, every = recognise(model), tiny_contrasts()
    aligned = align_all(every, Encoder(tiny_tokenizer()))[0]
    values = {category: len(names) for category, names in vocabularies(every).items()}
    demand = Demand.of([Specific()], 2)
    assert demand.streams == {"contrasts", "controls"}
    controls = selecting(aligned, "controls")
    statistics, outcome = audit(
        model, architecture, selecting(aligned), values, demand, controls=controls, accelerator="cpu", micro_batch_tokens=64
    )
    assert outcome.contrasts == len(selecting(aligned)) + len(controls)
    assert statistics.control_categories == tuple(sorted({one.category for one in controls}))
    assert not set(statistics.categories) & set(statistics.control_categories)
    for name, site in architecture.sites.items():
        at = context(statistics, "contrasts", 0, site, Specific().needs(), {}, torch.Generator())
        whole = at.of("controls")
        assert (whole.count, whole.observed.tolist()) == (len(controls), [len(controls)] * 48)
        torch.testing.assert_close(
            whole.sums["controlled-spread.variance"][0], by_hand(controls, model, name), rtol=1e-5, atol=1e-12
        )
        parts = [at.of("controls", category) for category in statistics.control_categories]
        assert sum(part.count for part in parts) == whole.count
        own = at.of("contrasts", at.category)
        assert own.sums["controlled-spread.variance"].equal(at.sums["controlled-spread.variance"])
        with pytest.raises(
            KeyError, match="no statistic was declared for the stream 'calibration'; declared: contrasts, controls"
        ):
            at.of("calibration")
        with pytest.raises(KeyError, match="the stream 'controls' has no category 'age'; there are: "):
            at.of("controls", "age")
    scores = score(statistics, model, architecture, Specific(), Still(), ("x:b", "x:i"))
    for name in architecture.sites:
        assert scores.bias[name].min() > 0
        torch.testing.assert_close(scores.importance[name], by_hand(controls, model, name), rtol=1e-5, atol=1e-12)


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """Up to the plan, with plugins in memory in the place of those that a recipe names."""
    from fairprune_framework.pipeline import run_stages
    from fairprune_framework.runs.open import open_run

    def go(contrasts: Any, **plugins: Any) -> Any:
        opened = open_run(
            tmp_path / "run",
            {"budget": "0.1", "calibration": str(text)},
            model=tiny_model("llama"),
            tokenizer=tiny_tokenizer(),
            prompts=contrasts,
            fresh=True,
        )
        for kind, plugin in plugins.items():
            setattr(opened.plugins, kind, plugin)
        return run_stages(opened, "read", "audit", "score", "plan")

    text = tmp_path / "text.jsonl"
    text.write_text("".join(f'{{"text": "{"The nurse said that the tall man walked home. " * 6} {i}"}}\n' for i in range(8)))
    return go


def test_a_run_hands_controls_to_scorers_and_policies(run: Any, tmp_path: Path) -> None:
    found = run(tiny_contrasts(), bias=Specific(), importance=Still(), policy=MostSpecific())
    sums = load_file(tmp_path / "run" / "statistics.safetensors")
    assert {key.partition("/")[0] for key in sums if "controlled-spread" in key} == {"contrasts", "controls"}
    plan = found.read_plan()
    assert plan.count == int(0.1 * 96)
    statistics = found.read_statistics()
    ratio = {
        name: statistics.of("contrasts", name, None)["controlled-spread.variance"][0]
        / statistics.of("controls", name, None)["controlled-spread.variance"][0]
        for name in plan.sites
    }
    worst = min(float(ratio[name][unit]) for name, units in plan.sites.items() for unit in units)
    left = [float(value) for name in ratio for unit, value in enumerate(ratio[name]) if unit not in plan.sites[name]]
    assert worst >= max(left) * (1 - 1e-9)


def test_held_out_controls_feed_nothing_and_without_any_there_is_no_audit(run: Any, tmp_path: Path) -> None:
    held_out = [replace(one, split="heldout" if one.control else "select") for one in tiny_contrasts()]
    with pytest.raises(UserError, match="Specific compares with control contrasts, and the prompt set has none that may feed"):
        run(held_out, bias=Specific())
    assert not (tmp_path / "run").exists()
    run([one for one in tiny_contrasts() if not one.control])  # nobody asks for controls
