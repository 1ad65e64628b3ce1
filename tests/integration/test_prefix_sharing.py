"""Computing shared prefixes once: the same statistics as from plain rows in every family, or plain rows."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fairprune_framework.auditing.audit import audit
from fairprune_framework.auditing.batches import compose, composition_hash
from fairprune_framework.auditing.callback import ActivationStatisticsCallback
from fairprune_framework.auditing.demand import Demand, selecting
from fairprune_framework.auditing.micro_batch import MicroBatch
from fairprune_framework.auditing.prefix_sharing import prefix_sharing
from fairprune_framework.auditing.runner import stream
from fairprune_framework.auditing.statistics import Statistics
from fairprune_framework.cli.main import main
from fairprune_framework.contrasts.alignment import AlignedContrast, align_all, vocabularies
from fairprune_framework.discovery import build
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.testing.tiny import FAMILIES, tiny_contrasts, tiny_model, tiny_tokenizer

VALUES = {category: len(found) for category, found in vocabularies(tiny_contrasts()).items()}


@pytest.fixture(scope="module")
def contrasts() -> list[AlignedContrast]:
    return selecting(align_all(tiny_contrasts(), Encoder(tiny_tokenizer()))[0])


def audited(model: nn.Module, contrasts: Sequence[AlignedContrast], share_up_to: int) -> Statistics:
    architecture = recognise(model)
    plugins = [build("bias", "variance", {"relative": True}), build("bias", "gate-up-difference")]
    demand = Demand.of(plugins, len(architecture.sites))
    found, _ = audit(model, architecture, contrasts, VALUES, demand, share_up_to=share_up_to, accelerator="cpu")
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_the_statistics_of_plain_rows(family: str, contrasts: list[AlignedContrast]) -> None:
    model = tiny_model(family)
    up_to = prefix_sharing(model).up_to
    assert up_to >= max(contrast.length for contrast in contrasts)
    shared, plain = audited(model, contrasts, up_to), audited(model, contrasts, 0)
    assert shared.composition != plain.composition
    assert shared.sums.keys() == plain.sums.keys()
    for key, value in plain.sums.items():
        if key.endswith("/observed"):
            assert torch.equal(shared.sums[key], value), key
        torch.testing.assert_close(shared.sums[key], value, rtol=1e-4, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}")


def test_fewer_tokens_are_computed(contrasts: list[AlignedContrast]) -> None:
    shared, plain = (list(compose(contrasts, VALUES, 512, share_up_to=up_to)) for up_to in (512, 0))
    texts = {tokens.ids for contrast in contrasts for tokens in contrast.variants}
    beginnings = {ids[:n] for ids in texts for n in range(1, len(ids) + 1)}
    assert sum(batch.tokens for batch in shared) < 0.8 * sum(batch.tokens for batch in plain)
    assert sum(int(batch.attention_mask.sum()) for batch in shared) >= len(beginnings)


def test_order_of_packed_micro_batches_changes_no_bit(contrasts: list[AlignedContrast]) -> None:
    model = tiny_model("llama")
    architecture = recognise(model)
    found = list(compose(contrasts, VALUES, 32, share_up_to=512))
    assert len(found) > 3

    def run(batches: Sequence[MicroBatch]) -> Statistics:
        callback = ActivationStatisticsCallback(
            model=model,
            adapter=architecture.adapter,
            sites=list(architecture.sites.values()),
            statistics=build("bias", "variance").needs().statistics,
            categories={"contrasts": sorted(VALUES)},
        )
        stream(model, batches, [callback], "cpu")
        return callback.result(composition_hash(batches))

    one, two = run(found), run(random.Random(3).sample(found, len(found)))
    assert all(torch.equal(value, two.sums[key]) for key, value in one.sums.items())


# -- where it cannot be done ---------------------------------------------------------------------------------------------------


def test_texts_longer_than_the_sliding_window_are_not_packed(contrasts: list[AlignedContrast]) -> None:
    """A tree mask replaces the window's: with it, the long texts would see too much."""
    model = tiny_model("mistral", sliding_window=9)
    up_to = prefix_sharing(model).up_to
    assert up_to == 9
    lengths = {contrast.length for contrast in contrasts}
    assert min(lengths) <= 9 < max(lengths)
    shared, plain = audited(model, contrasts, up_to), audited(model, contrasts, 0)
    for key, value in plain.sums.items():
        torch.testing.assert_close(shared.sums[key], value, rtol=1e-4, atol=1e-9)


# -- in a run ------------------------------------------------------------------------------------------------------------------


def test_run_json_says_what_was_shared_and_never_switches_it_off(
    llama: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["audit", str(llama), "--prompts", str(prompts), "--output", str(tmp_path / "run"), "--accelerator", "cpu"]
    words += ["--recipe", "variance"]  # passes with an objective never share
    assert main(words) == 0
    first = json.loads((tmp_path / "run" / "run.json").read_text())
    assert first["audit"]["sharing"]["prefixes"] is True
    assert main([*words, "--prefix-sharing", "never"]) == 2
    assert "prefix_sharing" in capsys.readouterr().err
    assert main([*words, "--prefix-sharing", "never", "--overwrite"]) == 0
    second = json.loads((tmp_path / "run" / "run.json").read_text())
    assert second["audit"]["sharing"] == {"prefixes": False, "because": "--prefix-sharing never"}
    assert first["hashes"]["composition"] != second["hashes"]["composition"]


def test_an_evaluation_gives_the_same_with_and_without_for_fewer_tokens(
    llama: Path, prompts: Path, tmp_path: Path, quick: tuple[str, ...], fairprune: Any
) -> None:
    """All rows of both models and what random sets do; each text is still computed in each model."""
    found = {}
    for sharing in ("auto", "never"):
        output = tmp_path / sharing
        answer = fairprune("run", llama, "--prompts", prompts, "--output", output, "--prefix-sharing", sharing, *quick)
        assert answer.code == 0, answer.err
        found[sharing] = [json.loads((output / name).read_text()) for name in ("evaluation.json", "run.json")]
    (shared, record), (plain, other) = found["auto"], found["never"]
    assert len(shared["results"]) == len(plain["results"]) > 10
    for row, same in zip(shared["results"], plain["results"], strict=True):
        assert (row["metric"], row["split"], row["category"]) == (same["metric"], same["split"], same["category"])
        for name, off in (("before", 1e-8), ("after", 1e-8), ("change", 1e-4)):
            assert (row[name] is None) == (same[name] is None)
            assert row[name] is None or row[name] == pytest.approx(same[name], rel=1e-3, abs=off), row
    assert record["random_sets"] == pytest.approx(other["random_sets"], rel=1e-2, abs=1e-4)
    assert record["work"]["evaluate"]["tokens"] < other["work"]["evaluate"]["tokens"]
