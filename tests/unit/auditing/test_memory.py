"""The memory of sums is known before an audit, equals what the audit then holds, and is refused above a third of the machine."""

from __future__ import annotations

import pytest
import torch

from fairprune_framework import discovery
from fairprune_framework.auditing import memory
from fairprune_framework.auditing.audit import audit
from fairprune_framework.auditing.demand import Demand
from fairprune_framework.auditing.memory import WORDS, in_words, refuse_large, sums_bytes
from fairprune_framework.auditing.statistics import OBSERVED
from fairprune_framework.auditing.streams import largest_of
from fairprune_framework.calibration.text import Calibration
from fairprune_framework.contrasts.alignment import align_all, vocabularies
from fairprune_framework.errors import UserError
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.testing.tiny import tiny_contrasts, tiny_legitimate, tiny_model, tiny_tokenizer

MODEL = tiny_model("llama")
ARCHITECTURE = recognise(MODEL)
SITES = list(ARCHITECTURE.sites.values())
CONTRASTS = [contrast for contrast in tiny_contrasts() if not contrast.control]
CONTROLS = [contrast for contrast in tiny_contrasts() if contrast.control]
VALUES = {category: len(names) for category, names in vocabularies([*tiny_contrasts(), *tiny_legitimate()]).items()}
LARGEST = {
    "contrasts": largest_of(VALUES, {each.category for each in CONTRASTS}),
    "controls": largest_of(VALUES, {each.category for each in CONTROLS}),
    "legitimate": largest_of(VALUES, {each.category for each in tiny_legitimate()}),
}
EVERY = [entry for kind in ("bias", "importance") for entry in discovery.entries(kind)]


def sizes(demand: Demand) -> dict[str, int]:
    groups = {"contrasts": len({c.category for c in CONTRASTS}), "controls": 1, "legitimate": 1}
    found = sums_bytes(demand, MODEL, SITES, groups, LARGEST)  # type: ignore[arg-type]
    return {statistic.name: size for statistic, size in found.items()}


@pytest.mark.parametrize("entry", EVERY, ids=lambda entry: f"{entry.kind}-{entry.name}")
def test_announced_as_it_turns_out(entry: discovery.Entry) -> None:
    plugin = discovery.make(entry, discovery.load(entry), {"steps": 2} if entry.name == "integrated-gradients" else {})
    demand = Demand.of([plugin], len(SITES))
    encoder = Encoder(tiny_tokenizer())
    statistics, _ = audit(
        MODEL,
        ARCHITECTURE,
        align_all(CONTRASTS, encoder)[0],
        VALUES,
        demand,
        controls=align_all(CONTROLS, encoder)[0],
        legitimate=align_all(tiny_legitimate(), encoder)[0],
        calibration=Calibration(documents=(tuple(range(5, 20)),) * 4, source="test") if demand.calibration else None,
        accelerator="cpu",
    )
    summed = sum(value.numel() for key, value in statistics.sums.items() if not key.endswith(f"/{OBSERVED}"))
    assert sum(sizes(demand).values()) == WORDS * summed


def test_the_square_ones_are_named_and_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    demand = Demand.of([discovery.build("importance", "obs"), discovery.build("bias", "variance")], len(SITES))
    found = sums_bytes(demand, MODEL, SITES, {"contrasts": 2}, {"contrasts": 4})
    assert in_words(found).endswith("GB of it for 'gram'")
    refuse_large(found, torch.device("cpu"))
    monkeypatch.setattr(memory, "memory_of", lambda device: 3.0 * sum(found.values()) - 4)
    with pytest.raises(UserError, match=r"the sums of this audit would take .* for 'gram'; on this machine they may take"):
        refuse_large(found, torch.device("cpu"))


def test_clusters_are_counted() -> None:
    from dataclasses import replace

    demand = Demand.of([discovery.build("bias", "variance")], len(SITES))
    (one,), (many,) = sizes(demand).values(), sizes(replace(demand, clusters=True)).values()
    assert many == 32 * one
