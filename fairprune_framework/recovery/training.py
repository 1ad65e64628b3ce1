"""The training: batches of documents, a loss on the next token or on the original's answers, and a Lightning Trainer over both.

The loss is computed few positions at a time (`models.head`), so that no (tokens x vocabulary) is in memory; its gradient stops before the
weights of the head, which stay as they are, as the embeddings do.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from fairprune_framework.api.decoders import text_decoder
from fairprune_framework.calibration.text import padded
from fairprune_framework.errors import FairpruneError
from fairprune_framework.functional.divergence import kl_divergence
from fairprune_framework.functional.log_probs import log_probs
from fairprune_framework.models.head import answers_of, output_embeddings, over_positions, positions_before
from fairprune_framework.recovery.held import Held
from fairprune_framework.utilities import stopping
from fairprune_framework.utilities.progress import bar

WARM_UP = 0.1
"""Share of the steps in which the learning rate rises; it falls to zero by a cosine afterwards."""
LARGEST_GRADIENT = 1.0
"""Norm to which gradients are clipped."""


def batches(documents: Sequence[Sequence[int]], batch_tokens: int, steps: int, seed: int) -> Iterator[list[Sequence[int]]]:
    """The documents of every step, in an order drawn anew for each pass; each batch holds as many as fit, and at least one.

    Args:
        batch_tokens: tokens of a step, at most.
    """
    generator = torch.Generator().manual_seed(seed)
    batch: list[Sequence[int]] = []
    size = made = 0
    while True:
        for index in torch.randperm(len(documents), generator=generator).tolist():
            document = documents[index]
            if batch and size + len(document) > batch_tokens:
                yield batch
                made += 1
                if made == steps:
                    return
                batch, size = [], 0
            batch.append(document)
            size += len(document)


class _Steps(IterableDataset[tuple[Tensor, Tensor, list[int]]]):
    def __init__(self, documents: Sequence[Sequence[int]], batch_tokens: int, steps: int, seed: int) -> None:
        self.arguments = (documents, batch_tokens, steps, seed)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, list[int]]]:
        for batch in batches(*self.arguments):
            ids, mask = padded(batch)
            yield ids, mask, [len(document) for document in batch]


class RecoveryDataModule(LightningDataModule):
    """Batches of documents: token ids (B, T), their mask (B, T), and lengths; one an optimiser step.

    Args:
        documents: token ids, at least two each.
        batch_tokens: tokens of a step, at most.
        seed: of the order.
    """

    def __init__(self, documents: Sequence[Sequence[int]], batch_tokens: int, steps: int, seed: int = 0) -> None:
        super().__init__()
        self._steps = _Steps(documents, batch_tokens, steps, seed)

    def train_dataloader(self) -> Any:
        """One batch an item."""
        return DataLoader(self._steps, batch_size=None, shuffle=False, num_workers=0)


class RecoveryModule(LightningModule):
    """A causal language model in training.

    Args:
        model: where the parameters that are trained ask for gradients.
        teacher: a model whose answers are what is learnt; None: the text is.
        learning_rate: the highest one.
    """

    def __init__(self, model: nn.Module, *, teacher: nn.Module | None, learning_rate: float, steps: int) -> None:
        super().__init__()
        self.model = model
        self._teacher = [] if teacher is None else [teacher]  # in a list: no submodule
        self.learning_rate, self.steps = learning_rate, steps
        self.losses: list[float] = []
        """Nats per token, of every step."""
        self.seen = 0
        """Tokens of all steps."""
        self.trained_parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)

    def training_step(self, batch: tuple[Tensor, Tensor, list[int]], batch_idx: int) -> Tensor:
        """Mean over the tokens of a batch but the first of each document: -log p, or KL(teacher || model)."""
        ids, mask, lengths = batch
        inputs = {"input_ids": ids, "attention_mask": None if bool(mask.all()) else mask}
        rows, columns = positions_before(lengths, ids.device)
        answers = answers_of(self.model, **inputs)
        if self._teacher:
            with torch.no_grad():
                theirs = answers_of(self._teacher[0], **inputs)

            def of_part(logits: Tensor, part: slice) -> Tensor:
                with torch.no_grad():
                    wanted = torch.log_softmax(theirs.logits((rows[part], columns[part])).float(), -1)
                return kl_divergence(wanted, torch.log_softmax(logits.float(), -1))

        else:
            targets = ids[rows, columns + 1]

            def of_part(logits: Tensor, part: slice) -> Tensor:
                return -log_probs(logits, targets[part])

        loss = over_positions(answers, (rows, columns), of_part).mean()
        self.losses.append(float(loss.detach()))
        self.seen += sum(lengths)
        if not math.isfinite(self.losses[-1]):
            raise FairpruneError(
                f"the loss of step {len(self.losses)} is not finite: give a lower --learning-rate. Nothing was kept."
            )
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW without weight decay; a linear warm-up, then a cosine to zero."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=self.learning_rate, weight_decay=0.0)
        warm = max(1, round(WARM_UP * self.steps))

        def share(step: int) -> float:
            if step < warm:
                return (step + 1) / warm
            return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, self.steps - warm)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class HoldPlannedNeurons(Callback):
    """Puts planned neurons back before the first step and after each."""

    def __init__(self, held: Held) -> None:
        self.held = held

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """An adapter begins with random columns."""
        self.held.put_back(pl_module.model)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """After the optimiser's step."""
        self.held.put_back(pl_module.model)


class _Progress(Callback):
    def __init__(self, advance: Any) -> None:
        self.advance = advance

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.advance(1)
        stopping.check()


def train_decoder(model: nn.Module) -> None:
    """Let all weights of the text decoder be trained but embeddings and head, and nothing else."""
    model.requires_grad_(False)
    text_decoder(model).requires_grad_(True)
    embeddings: Any = model.get_input_embeddings
    for fixed in (embeddings(), output_embeddings(model)):
        if fixed is not None:
            fixed.requires_grad_(False)


def fit(module: RecoveryModule, data: RecoveryDataModule, held: Held, device: torch.device) -> None:
    """Train for the module's steps. The model keeps its mode, so that one in eval mode is trained without dropout.

    Raises:
        FairpruneError: the loss is no number.
        KeyboardInterrupt: a signal came.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings(), bar("training", module.steps, "steps") as advance, stopping.unswallowed():
        warnings.filterwarnings("ignore", module="lightning")
        trainer = Trainer(
            accelerator=device.type,
            devices=1,
            max_steps=module.steps,
            gradient_clip_val=LARGEST_GRADIENT,
            callbacks=[HoldPlannedNeurons(held), _Progress(advance)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, datamodule=data)
