from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
import torch

from fairprune_framework.errors import FairpruneError
from fairprune_framework.evaluation.metrics.perplexity import text_loss
from fairprune_framework.models.architecture import recognise
from fairprune_framework.recovery.held import Held
from fairprune_framework.recovery.training import RecoveryDataModule, RecoveryModule, batches, fit, train_decoder
from fairprune_framework.surgery.slices import weights_of, zero_
from fairprune_framework.testing.tiny import tiny_model

CPU = torch.device("cpu")
DOCUMENTS = [
    tuple(torch.randint(3, 300, (length,), generator=torch.Generator().manual_seed(length)).tolist())
    for length in (9, 12, 12, 7, 16, 5)
]


def trained(*, distill: bool = False, steps: int = 12, rate: float = 3e-3, seed: int = 0) -> tuple[Any, RecoveryModule, Held]:
    """A tiny model of which two neurons a site are zeros, after some steps."""
    model = tiny_model("llama")
    sites = recognise(model).sites
    units = dict.fromkeys(sites, (1, 4))
    for site in sites.values():
        parameters = {one.parameter: model.get_parameter(one.parameter).data for one in site.slices}
        zero_(parameters, site, torch.tensor([1, 4]))
    held = Held(model, sites, units)
    train_decoder(model)
    teacher = tiny_model("llama") if distill else None
    module = RecoveryModule(model, teacher=teacher, learning_rate=rate, steps=steps)
    fit(module, RecoveryDataModule(DOCUMENTS, 30, steps, seed), held, CPU)
    return model, module, held


def test_every_document_comes_once_a_pass_in_an_order_of_the_seed() -> None:
    found = list(batches(DOCUMENTS, 1, 12, 0))
    assert all(len(batch) == 1 for batch in found)
    first, second = (list(chain.from_iterable(part)) for part in (found[:6], found[6:]))
    assert sorted(first) == sorted(second) == sorted(DOCUMENTS)
    assert first != second
    assert found == list(batches(DOCUMENTS, 1, 12, 0))
    assert found != list(batches(DOCUMENTS, 1, 12, 1))


def test_a_batch_holds_as_many_documents_as_fit() -> None:
    found = list(batches(DOCUMENTS, 30, 10, 0))
    assert len(found) == 10
    assert all(sum(map(len, batch)) <= 30 for batch in found)
    assert max(map(len, found)) > 1


def test_the_first_loss_is_that_of_the_text() -> None:
    _, module, _ = trained(steps=1, rate=1e-9)
    (batch,) = batches(DOCUMENTS, 30, 1, 0)
    model = trained(steps=1, rate=1e-9)[0]
    loss = text_loss(model, batch)
    assert module.losses[0] == pytest.approx(sum(loss.nll) / sum(loss.tokens), rel=1e-5)
    assert module.seen == sum(map(len, batch))


@pytest.mark.parametrize("distill", [False, True])
def test_the_loss_falls_and_zeros_stay(distill: bool) -> None:
    model, module, held = trained(distill=distill, steps=30)
    assert sum(module.losses[-5:]) < 0.8 * sum(module.losses[:5])
    held.check(model)
    for site in recognise(model).sites.values():
        for weights in weights_of(model, site).values():
            assert not weights[[1, 4]].any()


def test_embeddings_and_head_stay() -> None:
    model, _, _ = trained()
    fresh = dict(tiny_model("llama").named_parameters())
    same = {name for name, parameter in model.named_parameters() if torch.equal(parameter, fresh[name])}
    assert same == {name for name in fresh if "embed" in name or "lm_head" in name}


def test_a_seed_gives_the_same_weights() -> None:
    first, second, other = (trained(seed=seed, steps=4)[0].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_loss_that_is_no_number_stops_the_training() -> None:
    with pytest.raises(FairpruneError, match="not finite: give a lower --learning-rate"):
        trained(rate=1e30, steps=8)
