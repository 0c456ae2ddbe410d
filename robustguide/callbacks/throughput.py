"""How fast a training goes, what it waits for and what it holds, as curves while it runs."""

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer

from robustguide.callbacks.meter import rows_of
from robustguide.machine.memory import peak_memory

PREFIX = "speed/"


class Throughput(Callback):
    """Logs images a second, the share of time that batches were waited for, and peak memory.

    Between two log entries, on each process's own clock and without waiting for the device: a GPU
    works behind the host, so that a single step tells little and a window of some is right.
    It comes behind the other callbacks, so that their work counts as work and not as waiting;
    validation is left out. Logged are the times of the first process; images are those of all.
    """

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        """Begins a window that has seen nothing."""
        self.ended: float | None = None  # when the last batch did
        self.begun = 0.0
        self.images, self.waited, self.worked, self.logged = 0, 0.0, 0.0, 0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Nothing yet."""
        self._forget()

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        """What passes until the next batch is no waiting for data."""
        self.ended = None

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        """The time in which the workers of an epoch start is not that of a batch."""
        self.ended = None

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """A batch is there."""
        self.begun = time.perf_counter()
        if self.ended is not None:
            self.waited += self.begun - self.ended

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs a window, at the trainer's own rhythm."""
        self.ended = time.perf_counter()
        self.worked += self.ended - self.begun
        self.images += rows_of(batch)
        step = trainer.global_step
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by a connector
        if trainer.logger is None or step == self.logged or step % every:
            return
        trainer.logger.log_metrics(self.window(trainer), step=step)
        self.logged = step
        self.images, self.waited, self.worked = 0, 0.0, 0.0
        self.ended = time.perf_counter()  # the logger's time is nobody's

    def window(self, trainer: Trainer) -> dict[str, float]:
        """What was seen since the last one."""
        seconds = self.worked + self.waited
        found = {
            f"{PREFIX}images_per_second": self.images * trainer.world_size / seconds,
            f"{PREFIX}data_wait": self.waited / seconds,
        }
        memory, _ = peak_memory(trainer.strategy.root_device)
        return found | ({} if memory is None else {f"{PREFIX}peak_memory_mib": memory / 2**20})
