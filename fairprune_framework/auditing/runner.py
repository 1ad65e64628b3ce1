"""Runs micro-batches through a model with a Lightning Trainer: the only user of its loggers."""

from __future__ import annotations

import importlib
import inspect
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from fairprune_framework.api.decoders import text_decoder
from fairprune_framework.auditing.callback import IN_HALVES, ActivationStatisticsCallback, StopForward
from fairprune_framework.auditing.distributed.checkpoint_callback import CheckpointCallback
from fairprune_framework.auditing.distributed.parallel import Parallelism, environments, strategy_of
from fairprune_framework.auditing.micro_batch import MicroBatch
from fairprune_framework.auditing.objectives import objectives_of
from fairprune_framework.auditing.prefix_sharing import forward_inputs
from fairprune_framework.errors import UserError, shortened, shown
from fairprune_framework.utilities import stopping

Item = TypeVar("Item")


class TrunkModule(LightningModule):
    """Runs the trunk of a transformers causal language model, without its head; for passes with an objective, all of it.

    Where a micro-batch runs out of memory, it is computed in halves.
    """

    def __init__(self, model: nn.Module, *, compile: bool = False) -> None:
        super().__init__()
        self.model = model
        self._trunk = [text_decoder(model)]  # in a list: not a second submodule
        self._compiled: Any = [torch.compile(self._trunk[0])] if compile else []
        self.parallelize: Callable[[Any], None] | None = None
        """Distributes the parameters over a device mesh, under `fsdp` and `tensor_parallel`."""
        self.lockstep = False
        """The ranks compute in lockstep: no rank may compute more often than they do."""
        self._home = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))

    def cpu(self) -> Self:
        """Put the model back where it stood: Lightning calls this at the end, and a model that was on an accelerator stays there.

        What follows an audit computes on the same device, and the way there and back costs more than a small audit.
        """
        if self.lockstep or self._home.type in ("cpu", "meta"):
            self.to("cpu")
        else:
            self.to(self._home)
        return self

    def configure_model(self) -> None:
        """Distribute the model over the device mesh, once."""
        if self.parallelize is not None:
            parallelize, self.parallelize = self.parallelize, None
            parallelize(self.device_mesh)

    def predict_step(self, batch: MicroBatch, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Forward; callbacks take activations. Returns the objectives of the batch's pass, (C,) each with their graph."""
        try:
            return self.compute(batch)
        except torch.OutOfMemoryError:
            listening = [each for each in self.trainer.callbacks if isinstance(each, ActivationStatisticsCallback)]
            if len(listening) != 1 or self.lockstep:
                raise
        listening[0].compute_in_halves(batch, self.compute)
        return IN_HALVES

    def compute(self, batch: MicroBatch) -> list[Tensor] | None:
        """The forward of one micro-batch."""
        if batch.pass_.objective is not None:
            return objectives_of(self.model, batch)
        with suppress(StopForward):
            self._forward(batch)
        return None

    def _forward(self, batch: MicroBatch) -> None:
        if batch.paths is not None:
            assert batch.position_ids is not None
            inputs = forward_inputs(self.model, batch.input_ids, batch.position_ids, batch.paths)
        else:
            mask = batch.attention_mask if batch.padded else None
            inputs = {"input_ids": batch.input_ids, "attention_mask": mask, "use_cache": False}
        if not self._compiled:
            self._trunk[0](**inputs)
            return
        with torch._dynamo.config.patch(suppress_errors=True):  # what cannot be compiled runs as it is
            self._compiled[0](**inputs)


def cannot_compile() -> str | None:
    """Why nothing can be compiled here, in one line, tried on one addition; None: it can."""
    try:
        torch.compile(_incremented)(torch.zeros(2))
    except Exception as error:  # whatever a compiler that is absent or broken raises
        return shortened(" ".join(f"{type(error).__name__}: {error}".split()))
    return None


def _incremented(value: Tensor) -> Tensor:
    return value + 1


class _Stream(IterableDataset[MicroBatch]):
    """Micro-batches that are made when they are asked for, or `ahead` of it."""

    def __init__(self, make: Callable[[], Iterator[MicroBatch]], ahead: bool) -> None:
        self.make, self.ahead = make, ahead

    def __iter__(self) -> Iterator[MicroBatch]:
        return made_ahead(self.make()) if self.ahead else self.make()


def made_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items in the same order, the next one made in a thread meanwhile; what making it raises is raised here.

    For an accelerator: while this thread waits for it, another one can tokenize and lay out what comes next. On a CPU it would take
    the time of a core that computes.
    """
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="micro-batches") as maker:
        waiting = maker.submit(next, items, end)
        while (item := waiting.result()) is not end:
            waiting = maker.submit(next, items, end)
            yield cast("Item", item)


class ContrastDataModule(LightningDataModule):
    """Micro-batches as they were composed: no sampler, no collation.

    Args:
        batches: in memory, or a call that makes them one after the other.
    """

    def __init__(self, batches: Sequence[MicroBatch] | Callable[[], Iterator[MicroBatch]]) -> None:
        super().__init__()
        self.batches = batches

    def predict_dataloader(self) -> Iterable[MicroBatch]:
        """One micro-batch an item."""
        ahead = self.trainer is not None and self.trainer.strategy.root_device.type != "cpu"
        batches: Any = _Stream(self.batches, ahead) if callable(self.batches) else self.batches
        return DataLoader(batches, batch_size=None, shuffle=False, num_workers=0)

    def transfer_batch_to_device(self, batch: MicroBatch, device: torch.device, dataloader_idx: int) -> MicroBatch:
        """All tensors of a micro-batch."""
        return batch.to(device)


def stream(
    model: nn.Module | TrunkModule,
    batches: Sequence[MicroBatch] | ContrastDataModule,
    callbacks: Sequence[Callback],
    accelerator: str = "auto",
    *,
    parallelism: Parallelism | None = None,
    loggers: Sequence[Any] = (),
    gradients: bool | None = None,
) -> None:
    """Run every micro-batch once through the trunk; callbacks take what they want. The model's mode is left as it was.

    Args:
        parallelism: devices and strategy; by default one device.
        gradients: some pass has an objective; None: look into the batches.
    """
    parallelism = parallelism or Parallelism(accelerator=accelerator)
    data = batches if isinstance(batches, ContrastDataModule) else ContrastDataModule(batches)
    if gradients is None:
        gradients = not callable(data.batches) and any(batch.pass_.objective for batch in data.batches)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    module = model if isinstance(model, TrunkModule) else TrunkModule(model, compile=parallelism.compile)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        trainer = Trainer(
            accelerator=parallelism.accelerator,
            devices=parallelism.devices,
            num_nodes=parallelism.nodes,
            strategy=strategy_of(parallelism),
            plugins=environments(parallelism) or None,
            callbacks=list(callbacks),
            logger=list(loggers) or False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            inference_mode=not gradients and not parallelism.sharded,
        )
        for callback in callbacks:
            if isinstance(callback, CheckpointCallback):
                callback.watch(trainer)
        training = module.model.training
        try:
            with stopping.unswallowed():
                trainer.predict(module, datamodule=data, return_predictions=False)
        finally:
            module.model.train(training)


def loggers_of(name: str | None, folder: Path) -> list[Any]:
    """The Lightning logger of `--log`: `csv`, `tensorboard`, or the import path of a class.

    Raises:
        UserError: there is none of that name, or it cannot be made.
    """
    if name is None:
        return []
    logger = logger_class(name)
    try:
        return [logger(save_dir=str(folder / "logs"))]
    except (ImportError, TypeError, ValueError) as error:
        raise UserError(f"--log {shortened(name)}: {type(error).__name__}: {' '.join(str(error).split())}") from error


def logger_class(name: str) -> type[Any]:
    """The class that `--log` names: imported, not made.

    Raises:
        UserError: there is none of that name, or it is no Lightning logger that takes `save_dir`.
    """
    from lightning.pytorch.loggers import Logger

    known = {"csv": "lightning.pytorch.loggers.CSVLogger", "tensorboard": "lightning.pytorch.loggers.TensorBoardLogger"}
    module, _, attribute = known.get(name, name).replace(":", ".").rpartition(".")
    wanted = f"--log must be {', '.join(known)} or the import path of a Lightning logger"
    if not module:
        raise UserError(f"{wanted}. Got {shown(name)} instead.")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever a module raises while it is imported
        raise UserError(f"{wanted}. {shown(name)}: {type(error).__name__}: {' '.join(str(error).split())}") from error
    if not (isinstance(found, type) and issubclass(found, Logger)):
        raise UserError(f"{wanted}. {shown(name)} is none.")
    if name == "tensorboard" and not any(find_spec(each) for each in ("tensorboard", "tensorboardX")):
        raise UserError("--log tensorboard needs tensorboard: pip install tensorboard")
    try:
        inspect.signature(found).bind(save_dir="logs")
    except TypeError as error:
        raise UserError(f"--log {shortened(name)}: it cannot be made with a folder alone: {error}") from error
    return found
