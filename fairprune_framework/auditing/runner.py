"""Running micro-batches through a model with a Lightning Trainer; the only user of Trainer."""

from __future__ import annotations

import logging
import signal
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fairprune_framework.auditing.batches import MicroBatch
from fairprune_framework.auditing.objectives import objective_of
from fairprune_framework.auditing.sharing import forward_inputs
from fairprune_framework.progress import bar


class TrunkModule(LightningModule):
    """Runs the trunk of a transformers causal language model, without its head; for passes with an objective, all of it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._trunk = [model.get_decoder()]  # type: ignore[operator]  # in a list: not a second submodule

    def predict_step(self, batch: MicroBatch, batch_idx: int, dataloader_idx: int = 0) -> Tensor | None:
        """Forward; what is wanted of it is taken by callbacks. Returns the objective of the batch's pass, (C,) with its graph."""
        if batch.step.objective is not None:
            return objective_of(self.model, batch)
        if batch.paths is not None:
            assert batch.position_ids is not None
            self._trunk[0](**forward_inputs(self.model, batch.input_ids, batch.position_ids, batch.paths))
            return None
        mask = None if bool(batch.attention_mask.all()) else batch.attention_mask
        self._trunk[0](input_ids=batch.input_ids, attention_mask=mask, use_cache=False)
        return None


class ContrastDataModule(LightningDataModule):
    """Micro-batches as they were composed: no sampler, no collation."""

    def __init__(self, batches: Sequence[MicroBatch]) -> None:
        super().__init__()
        self.batches = batches

    def predict_dataloader(self) -> DataLoader[MicroBatch]:
        """One micro-batch an item."""
        return DataLoader(self.batches, batch_size=None, shuffle=False, num_workers=0)  # type: ignore[arg-type]

    def transfer_batch_to_device(self, batch: MicroBatch, device: torch.device, dataloader_idx: int) -> MicroBatch:
        """All tensors of a micro-batch."""
        return batch.to(device)


class RateBar(Callback):
    """A progress bar with contrasts per second and the time left, on stderr; silent where that is no terminal."""

    def __init__(self, total: int, label: str = "audit") -> None:
        self.total, self.label, self.done, self.seconds = total, label, 0, 0.0
        self._open = ExitStack()
        self._advance: Callable[[int], None] = lambda done: None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._began = time.perf_counter()
        if trainer.is_global_zero:
            self._advance = self._open.enter_context(bar(self.label, self.total, "contrasts"))

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count contrasts."""
        self.done += len(batch.ids)
        self.seconds = time.perf_counter() - self._began
        self._advance(len(batch.ids))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bar."""
        self._stop()

    def _stop(self) -> None:
        self._open.close()


def stream(model: nn.Module, batches: Sequence[MicroBatch], callbacks: Sequence[Callback], accelerator: str = "auto") -> None:
    """Run every micro-batch once through the trunk; callbacks take what they want. The model's mode is left as it was."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        trainer = Trainer(
            accelerator=accelerator,
            devices=1,
            callbacks=list(callbacks),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            inference_mode=not any(batch.step.objective for batch in batches),
        )
        training, on_interrupt = model.training, signal.getsignal(signal.SIGINT)
        try:
            trainer.predict(TrunkModule(model), datamodule=ContrastDataModule(batches), return_predictions=False)
        except SystemExit as error:  # what Lightning makes of an interrupt, with SIGINT left ignored
            if not isinstance(error.__context__, KeyboardInterrupt):
                raise
            signal.signal(signal.SIGINT, on_interrupt)
            raise KeyboardInterrupt from error
        finally:
            model.train(training)
