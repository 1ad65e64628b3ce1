"""The highest and lowest of all contrasts, and a second reading of the prompts that sees what the first came to, against numpy."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fairprune_framework.api import BiasScorer, Needs, Observation, Reduction, SiteContext, Statistic, slot_means
from fairprune_framework.auditing.audit import audit
from fairprune_framework.auditing.demand import Demand, selecting
from fairprune_framework.contrasts.alignment import align_all, vocabularies
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.testing.tiny import tiny_contrasts, tiny_model, tiny_tokenizer

sys.path.insert(0, str(Path(__file__).parent))
import ranks as processes


@dataclass(frozen=True, kw_only=True)
class Top(Statistic):
    """The highest mean activation of a text."""

    reduce: ClassVar[Reduction] = "max"
    name: str = "top"

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        seen_CV1 = obs.aligned_mask.any(2).unsqueeze(-1)
        return {"value": slot_means(obs).masked_fill(~seen_CV1, -torch.inf).amax(1, keepdim=True)}


@dataclass(frozen=True, kw_only=True)
class Near(Statistic):
    """How many texts reach at least half of the highest of their category."""

    name: str = "near"

    def after(self) -> Sequence[Statistic]:
        return (Top(),)

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        top_C1N = obs.before["top.value"][obs.category]
        seen_CV1 = obs.aligned_mask.any(2).unsqueeze(-1)
        return {"count": ((slot_means(obs) >= top_C1N / 2) & seen_CV1).double().sum(1, keepdim=True)}


@dataclass(frozen=True, kw_only=True)
class Both(BiasScorer):
    """Reads both."""

    def needs(self) -> Needs:
        return Needs(statistics=(Near(), Top()))

    def score(self, at: SiteContext) -> Tensor:
        raise NotImplementedError


def texts(model: Any, category: str, site: str) -> NDArray[np.float64]:
    """(texts, N): mean over the shared slots, by a statistic-free forward of each micro-batch of one."""
    rows = []

    @dataclass(frozen=True, kw_only=True)
    class Kept(Statistic):
        name: str = "kept"

        def summands(self, obs: Observation) -> Mapping[str, Tensor]:
            if obs.site.name == site:
                rows.append(slot_means(obs)[obs.aligned_mask.any(2)].numpy().copy())
            return {}

    @dataclass(frozen=True, kw_only=True)
    class Keeping(BiasScorer):
        def needs(self) -> Needs:
            return Needs(statistics=(Kept(),))

        def score(self, at: SiteContext) -> Tensor:
            raise NotImplementedError

    run(model, Keeping(), 1, [c for c in tiny_contrasts() if c.category == category])
    return np.concatenate(rows)


def run(model: Any, plugin: BiasScorer, tokens: int, contrasts: Any = None) -> Any:
    every = [contrast for contrast in contrasts or tiny_contrasts() if not contrast.control]
    aligned, _ = align_all(every, Encoder(tiny_tokenizer()))
    values = {category: len(names) for category, names in vocabularies(tiny_contrasts()).items()}
    found, outcome = audit(
        model,
        recognise(model),
        selecting(aligned),
        values,
        Demand.of([plugin], 2),
        micro_batch_tokens=tokens,
        accelerator="cpu",
    )
    return found, outcome


@pytest.mark.parametrize("tokens", [1, 64, 4096])
def test_two_readings_against_numpy(tokens: int) -> None:
    model = tiny_model("llama")
    found, outcome = run(model, Both(), tokens)
    assert len(found.statistics) == 2
    assert outcome.contrasts == 2 * sum(found.counts["contrasts"])
    for site in ("model.layers.0.mlp", "model.layers.1.mlp"):
        for group, category in enumerate(found.categories):
            known = texts(model, category, site)
            top = known.max(0)
            np.testing.assert_allclose(found.of("contrasts", site, group)["top.value"][0], top, rtol=1e-4, atol=1e-7)
            near = found.of("contrasts", site, group)["near.count"][0].numpy()
            sure = np.abs(known - top / 2).min(0) > 1e-5  # no text so near the edge that rounding decides
            assert sure.mean() > 0.9
            np.testing.assert_array_equal(near[sure], (known >= top / 2).sum(0)[sure])


def test_experts_that_saw_no_token_of_a_contrast_are_not_asked() -> None:
    found, _ = run(tiny_model("mixtral"), Both(), 64)
    values = [value for key, value in found.sums.items() if key.endswith("top.value:max")]
    assert values
    shown = torch.cat([value.flatten() for value in values])
    assert not torch.isnan(shown).any()
    assert (shown != torch.inf).all()
    for site in sorted(found.sites()):
        assert torch.isfinite(found.of("contrasts", site, None)["top.value"]).all()


@pytest.fixture(scope="module")
def words(llama: Path, prompts: Path) -> Callable[..., list[str]]:
    def make(folder: Path, *more: str) -> list[str]:
        common = ["--bias", "expertise", "--importance", "max-abs-weight", "--accelerator", "cpu", "--checkpoint-every", "1"]
        return [
            "audit",
            str(llama),
            "--prompts",
            str(prompts),
            "--output",
            str(folder),
            *common,
            "--micro-batch-tokens",
            "64",
            *more,
        ]

    return make


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, words: Callable[..., list[str]]) -> Path:
    """The audit on one rank, never interrupted."""
    return processes.alone(tmp_path_factory.mktemp("alone"), words)


def test_two_readings_over_ranks(alone: Path, words: Callable[..., list[str]], tmp_path: Path) -> None:
    codes, text = processes.run(2, words(tmp_path / "run"), tmp_path / "log")
    assert codes == [0, 0], text
    processes.same(alone, tmp_path / "run")


@pytest.mark.parametrize("reading", [0, 1])
def test_stopped_and_resumed(reading: int, alone: Path, words: Callable[..., list[str]], tmp_path: Path) -> None:
    """In the first reading, and in the second; there the first one is not done again."""

    def stop(_: int) -> None:
        from fairprune_framework.auditing.accumulation import Accumulator

        commit, done = Accumulator.commit, [0]

        def counted(self: Any, batch: Any) -> None:
            commit(self, batch)
            done[0] += (self.before is not None) == bool(reading)
            if done[0] == 2:
                raise MemoryError("out of luck")

        Accumulator.commit = counted  # type: ignore[method-assign]

    codes, _ = processes.run(1, words(tmp_path / "run"), tmp_path / "log", stop)
    assert codes == [1]
    assert (tmp_path / "run" / "checkpoint" / "reading-1").exists() == bool(reading)
    codes, text = processes.run(1, words(tmp_path / "run"), tmp_path / "log")
    assert codes == [0], text
    processes.same(alone, tmp_path / "run")
