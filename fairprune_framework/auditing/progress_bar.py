"""The progress of an audit: contrasts and tokens per second, share of a bare forward, time left; on stderr and in loggers."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from fairprune_framework.utilities.progress import bar, is_shown
from fairprune_framework.utilities.wording import in_time

LINE_EVERY = 60.0
"""Seconds between two lines where there is no terminal."""
LOG_EVERY = 1.0
"""Seconds between two entries of a logger."""


class RateBar(Callback):
    """A progress bar on stderr where the command line shows them; where stderr is no terminal, a line a minute.

    Args:
        total: contrasts (and documents, over all passes) that there are, done ones included.
        done: of them, by earlier sessions.
        limit: tokens per second of a bare forward on this device, where it was measured.
        same_batches: all ranks compute the same micro-batches, as under tensor parallelism: none is counted twice.
    """

    def __init__(
        self, total: int, label: str = "audit", *, done: int = 0, limit: float | None = None, same_batches: bool = False
    ) -> None:
        self.total, self.label, self.done, self.before = total, label, done, done
        self.limit, self.same_batches = limit, same_batches
        self.tokens, self.batches = 0, 0
        self.seconds = 0.0
        self._open: ExitStack | None = None  # made when it starts: before, Lightning may pickle this
        self._advance: Callable[[int], None] | None = None
        self._said = self._logged = self._began = 0.0

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._began = self._said = self._logged = time.perf_counter()
        if trainer.is_global_zero:
            shown = bar(self.label, self.total, "contrasts", done=self.done, text=self.line)
            self._open = ExitStack()
            self._advance = self._open.enter_context(shown)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count the contrasts of all ranks, reckoned from those of this one."""
        ranks, before = 1 if self.same_batches else trainer.world_size, self.done
        self.done = min(self.total, self.done + len(batch.ids) * ranks) if self.total else self.done + len(batch.ids)
        self.tokens += batch.tokens * ranks
        self.batches += ranks
        now = time.perf_counter()
        self.seconds = now - self._began
        if not trainer.is_global_zero:
            return
        if self._advance is not None:
            self._advance(self.done - before)
        if is_shown() and not sys.stderr.isatty() and self.total and now - self._said > LINE_EVERY:
            self._said = now
            print(f"[{self.label}] {self.line()}", file=sys.stderr, flush=True)
        if trainer.loggers and now - self._logged > LOG_EVERY:
            self._logged = now
            self._log(trainer)

    def rates(self) -> dict[str, float]:
        """What is logged: over all ranks, reckoned from this one."""
        took = max(self.seconds, 1e-9)
        rates = {
            "contrasts": float(self.done),
            "contrasts_per_second": (self.done - self.before) / took,
            "tokens_per_second": self.tokens / took,
        }
        if self.limit:
            rates["share_of_limit"] = self.tokens / took / self.limit
        return rates

    def line(self) -> str:
        """One line of it."""
        rates = self.rates()
        share = f", {rates['share_of_limit']:.0%} of a bare forward" if "share_of_limit" in rates else ""
        left = (self.total - self.done) / rates["contrasts_per_second"] if self.done > self.before else float("nan")
        return (
            f"{self.done:,}/{self.total:,} contrasts, {rates['contrasts_per_second']:.1f}/s, "
            f"{rates['tokens_per_second']:,.0f} tokens/s{share}, {in_time(left)} left"
        )

    def _log(self, trainer: Trainer) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(self.rates(), step=self.done)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        if trainer.is_global_zero and trainer.loggers:
            self._log(trainer)
            for logger in trainer.loggers:
                logger.save()
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bar."""
        self._stop()

    def _stop(self) -> None:
        if self._open is not None:
            self._open.close()
        self._open = self._advance = None
