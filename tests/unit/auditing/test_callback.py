"""The callback in a Trainer of one's own, with a LightningModule of one's own; and what is left when things go wrong."""

from __future__ import annotations

import copy
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

import fairprune_framework as fp
from fairprune_framework.api.interfaces import Observation, Pass, Statistic
from fairprune_framework.auditing.batches import compose
from fairprune_framework.auditing.micro_batch import MicroBatch
from fairprune_framework.auditing.runner import stream
from fairprune_framework.contrasts.alignment import align_all, vocabularies
from fairprune_framework.discovery import build
from fairprune_framework.errors import ContractViolation, FairpruneError, UserError
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.testing.tiny import tiny_contrasts, tiny_model, tiny_tokenizer


class Own(LightningModule):
    """Somebody's module: runs the whole model, keeps its logits, and fails when told to."""

    def __init__(self, model: nn.Module, fail: BaseException | None = None) -> None:
        super().__init__()
        self.lm, self.fail = model, fail

    def predict_step(self, batch: MicroBatch, batch_idx: int) -> Tensor:
        logits: Tensor = self.lm(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
        if batch_idx == 1 and self.fail is not None:
            raise self.fail
        return logits[:, -1].float()


@pytest.fixture
def model() -> nn.Module:
    return tiny_model("llama")


def batches_of(tokens: int = 64) -> list[MicroBatch]:
    contrasts = tiny_contrasts()
    aligned, _ = align_all(contrasts, Encoder(tiny_tokenizer()))
    return list(compose(aligned, {category: len(names) for category, names in vocabularies(contrasts).items()}, tokens))


def callback_for(model: nn.Module, *statistics: Statistic) -> fp.ActivationStatisticsCallback:
    found = fp.recognise(model)
    return fp.ActivationStatisticsCallback(
        model=model,
        adapter=found.adapter,
        sites=list(found.sites.values()),
        statistics=statistics or build("bias", "variance").needs().statistics,
        categories={"contrasts": ["age", "race", "stature"]},
    )


def trainer(*callbacks: Any, **options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=1,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def loader(batches: list[Any]) -> DataLoader[Any]:
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.fixture
def sigint() -> Iterator[None]:
    """Lightning leaves SIGINT ignored after an interrupt; put it back."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def test_in_a_trainer_of_ones_own(model: nn.Module) -> None:
    batches, callback = batches_of(), callback_for(model)
    logits = trainer(callback).predict(Own(model), loader(batches))
    assert logits is not None
    assert len(logits) == len(batches)
    assert hooks(model) == 0
    assert not callback.attached
    theirs = callback.result("")

    ours = callback_for(model)
    stream(model, batches, [ours], "cpu")
    for key, value in ours.result("").sums.items():
        assert torch.allclose(value, theirs.sums[key], rtol=1e-6, atol=0), key
    assert theirs.counts["contrasts"] == (4, 6, 2)


def test_nothing_is_changed_by_listening(model: nn.Module) -> None:
    batches = batches_of()
    quiet = trainer().predict(Own(model), loader(batches))
    heard = trainer(callback_for(model)).predict(Own(model), loader(batches))
    assert quiet is not None
    assert heard is not None
    assert all(torch.equal(a, b) for a, b in zip(quiet, heard, strict=True))


@pytest.mark.parametrize("training", [True, False])
def test_detached_when_the_second_batch_raises(model: nn.Module, training: bool) -> None:
    model.train(training)
    callback = callback_for(model)
    with pytest.raises(RuntimeError, match="out of luck"):
        trainer(callback).predict(Own(model, RuntimeError("out of luck")), loader(batches_of()))
    assert hooks(model) == 0
    assert not callback.attached


@pytest.mark.parametrize("training", [True, False])
def test_the_runner_leaves_the_mode_as_it_was_when_a_batch_raises(
    model: nn.Module, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.train(training)
    calls = []

    def broken(batch: Any, _step: int) -> None:
        calls.append(batch)
        if len(calls) == 2:
            raise RuntimeError("out of luck")

    callback = callback_for(model)
    monkeypatch.setattr("fairprune_framework.auditing.progress_bar.RateBar.on_predict_batch_end", lambda *a, **k: None)
    layer = model.get_submodule("model.layers.1")
    handle = layer.register_forward_hook(lambda _module, args, _out: broken(args, 0))
    try:
        with pytest.raises(RuntimeError, match="out of luck"):
            stream(model, batches_of(), [callback], "cpu")
    finally:
        handle.remove()
    assert hooks(model) == 0
    assert {module.training for module in model.modules()} == {training}


def test_detached_on_ctrl_c(model: nn.Module, sigint: None) -> None:
    callback = callback_for(model)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        trainer(callback).predict(Own(model, KeyboardInterrupt()), loader(batches_of()))
    assert hooks(model) == 0
    assert not callback.attached


def test_the_runner_passes_ctrl_c_on_and_leaves_sigint_alone(model: nn.Module) -> None:
    """Lightning makes `exit(1)` of it and leaves SIGINT ignored."""
    before = signal.getsignal(signal.SIGINT)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = model.get_submodule("model.layers.1").register_forward_hook(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            stream(model, batches_of(), [callback_for(model)], "cpu")
    finally:
        handle.remove()
    assert hooks(model) == 0
    assert signal.getsignal(signal.SIGINT) is before


def test_batches_of_another_type(model: nn.Module) -> None:
    callback = callback_for(model)
    with pytest.raises(FairpruneError, match=r"needs batches of type MicroBatch. Got dict instead"):
        trainer(callback).predict(Own(model), loader([{"input_ids": torch.ones(1, 4).long()}]))
    assert hooks(model) == 0


def test_a_module_that_runs_only_a_part_of_the_model(model: nn.Module) -> None:
    class Half(Own):
        def predict_step(self, batch: MicroBatch, batch_idx: int) -> Any:
            return self.lm.get_submodule("model.layers.0.mlp.gate_proj")(torch.zeros(1, 1, 32))

    callback = callback_for(model, *build("bias", "gate-up-difference").needs().statistics)
    with pytest.raises(FairpruneError, match="did not run the whole model"):
        trainer(callback).predict(Half(model), loader(batches_of()))
    assert hooks(model) == 0


def test_nan_is_named_with_site_and_contrast(model: nn.Module) -> None:
    token = tiny_tokenizer().convert_tokens_to_ids("ĠLatino")
    with torch.no_grad():
        model.get_submodule("model.embed_tokens").weight[token] = float("nan")
    callback = callback_for(model)
    with pytest.raises(FairpruneError, match=r"'contrast-variance.mean' of site model\.layers\.0\.mlp at contrast 'tiny-[24]'"):
        trainer(callback).predict(Own(model), loader(batches_of(4096)))
    assert hooks(model) == 0


def test_the_last_output_projection_is_computed_once_only(model: nn.Module) -> None:
    late, early = callback_for(model), callback_for(model)
    early.early = True
    counts = []
    for callback in (late, early):
        called: list[int] = []
        last = model.get_submodule(callback.sites[-1].name).down_proj
        handle = last.register_forward_hook(lambda *_, called=called: called.append(1))  # type: ignore[operator]
        stream(model, batches_of(), [callback], "cpu")
        handle.remove()
        counts.append(len(called))
    assert counts == [len(batches_of()), 1]
    assert counts[0] > 1
    for key, value in late.result("").sums.items():
        assert torch.equal(value, early.result("").sums[key])


def test_bfloat16_models_are_summed_in_float64(model: nn.Module) -> None:
    callback, exact = callback_for(model), callback_for(model)
    stream(model, batches_of(), [exact], "cpu")
    low = copy.deepcopy(model)
    callback = callback_for(low)
    trainer(callback, precision="bf16-true").predict(Own(low), loader(batches_of()))
    assert {parameter.dtype for parameter in low.parameters()} == {torch.bfloat16}
    assert {getattr(callback.accumulator.sums, key).dtype for key in callback.accumulator.sums._defaults} == {torch.float64}
    wanted = exact.result("").sums
    for key, value in callback.result("").sums.items():
        assert value.dtype == torch.float64
        assert not torch.equal(value, value.bfloat16().double()) or key.endswith(("observed", "seen"))
        assert (value - wanted[key]).norm() <= 0.05 * wanted[key].norm(), key


@dataclass(frozen=True, kw_only=True)
class Bad(Statistic):
    """Returns what it is told to, which is not what it should."""

    name: str = "bad-one"
    what: str = "flat"

    def summands(self, obs: Observation) -> Mapping[str, Any]:
        good = obs.aligned["neuron"].sum((1, 2)).unsqueeze(1)
        return {
            "x": {
                "flat": good.sum(1),
                "few": good[:1].expand(good.shape[0] + 1, -1, -1),
                "float32": good.float(),
                "numpy": good.numpy(),
                "uneven": good.expand(-1, obs.mask.shape[2], -1),
            }[self.what]
        }


@pytest.mark.parametrize("what", ["flat", "few", "float32", "numpy", "uneven"])
def test_statistics_that_return_something_else_are_named(model: nn.Module, what: str) -> None:
    with pytest.raises(ContractViolation, match="'bad-one'"):
        trainer(callback_for(model, Bad(what=what))).predict(Own(model), loader(batches_of()))
    assert hooks(model) == 0


def test_statistics_that_raise_are_named(model: nn.Module) -> None:
    with pytest.raises(FairpruneError, match="'bad-one'") as caught:
        trainer(callback_for(model, Bad(what="unheard-of"))).predict(Own(model), loader(batches_of()))
    assert isinstance(caught.value.__cause__, KeyError)
    assert hooks(model) == 0


def test_a_category_that_was_not_set(model: nn.Module) -> None:
    found = fp.recognise(model)
    callback = fp.ActivationStatisticsCallback(
        model=model,
        adapter=found.adapter,
        sites=list(found.sites.values()),
        statistics=build("bias", "variance").needs().statistics,
        categories={"contrasts": ["age"]},
    )
    with pytest.raises(FairpruneError, match="'race'"):
        trainer(callback).predict(Own(model), loader(batches_of()))
    assert hooks(model) == 0


@pytest.mark.parametrize("words", [{"logits": "all"}, {"scale": 0.5}, {"layer": 0}])
def test_what_only_an_objective_could_use_is_refused_without_one(model: nn.Module, words: dict[str, Any]) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Odd(Bad):
        def passes(self, layers: int) -> list[Pass]:
            return [Pass(**words)]

    with pytest.raises(UserError, match="'bad-one' asks for logits, a scale or a layer without an objective"):
        callback_for(model, Odd(what="flat"))
