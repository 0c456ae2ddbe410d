"""The progress bar of every run."""

import math
import sys
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from robustguide.report.progress import Bars, Count, Display, Lines, is_terminal


class Progress(ProgressBar):
    """One count for a whole run: optimizer steps in training, else batches.

    On a terminal a bar, below which a second one shows a validation within training. Elsewhere
    lines: at the start, after each tenth, whenever nothing was printed for `silence` seconds, and
    at the end. Only the first process prints. Metrics are read when they are printed and not in
    between, since reading waits for the device.

    Args:
        silence: Seconds without a line after which one is printed; in long runs a twentieth of
            the time so far, ten minutes at most.
        refresh: Seconds between two drawings of the bar.
    """

    def __init__(self, silence: float = 15.0, refresh: float = 0.25) -> None:
        super().__init__()
        self.silence, self.refresh = silence, refresh
        self.enabled = True
        self.display: Display | None = None
        self.counts: list[Count] = []  # that run now, the outer one first

    def disable(self) -> None:
        """Prints nothing from here on."""
        self.enabled = False

    def enable(self) -> None:
        """Prints again."""
        self.enabled = True

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Metrics logged with `prog_bar`; without the logger's version."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Prints above the bar."""
        if self.enabled:
            print(*args, **kwargs)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts optimizer steps, or batches without one; a resumed run begins at its own."""
        total, unit = (
            trainer.estimated_stepping_batches,
            "steps" if trainer.optimizers else "batches",
        )
        self._start("fit", unit, total, done=trained(trainer))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Not every batch is a step."""
        self._advance(pl_module, trained(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The end."""
        self._end(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts batches, below the steps of training if that goes on."""
        sane = trainer.sanity_checking
        batches = trainer.num_sanity_val_batches if sane else trainer.num_val_batches
        is_whole_run = trainer.state.fn == "validate"
        self._start("check" if sane else "val", "batches", total_of(batches), is_whole_run)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *_: Any
    ) -> None:
        """One more."""
        self._advance(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The end."""
        self._end(pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts batches."""
        self._start("test", "batches", total_of(trainer.num_test_batches))

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """One more."""
        self._advance(pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The end."""
        self._end(pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts batches."""
        self._start("predict", "batches", total_of(trainer.num_predict_batches))

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """One more."""
        self._advance(pl_module)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The end."""
        self._end(pl_module)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Says where the run stopped, and gives the terminal back."""
        self._abandon()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives the terminal back."""
        self._abandon()

    def _start(
        self, name: str, unit: str, total: float, is_whole_run: bool = True, done: int = 0
    ) -> None:
        if not self.enabled:
            return
        if self.display is None:
            terminal = is_terminal(sys.stdout)
            self.display = Bars(self.refresh) if terminal else Lines(self.silence)
        known = int(total) if math.isfinite(total) and total > 0 else None
        count = Count(name, unit, known, is_whole_run, first=done, done=done)
        self.counts.append(count)
        self.display.start(count)

    def _advance(self, module: LightningModule, done: int | None = None) -> None:
        if self.display is None or not self.counts:
            return
        count = self.counts[-1]
        count.done = count.done + 1 if done is None else done
        if self.display.is_due(count):
            self.display.show(count, self._metrics(count, module))

    def _end(self, module: LightningModule) -> None:
        if self.display is None or not self.counts:
            return
        count = self.counts.pop()
        self.display.end(count, self._metrics(count, module))
        if not self.counts:
            self._close()

    def _metrics(self, count: Count, module: LightningModule) -> dict[str, Any]:
        """A validation within training has none of its own until it ends."""
        return self.get_metrics(module.trainer, module) if count.is_whole_run else {}

    def _abandon(self) -> None:
        """Ends what has not ended by itself."""
        if self.display is not None:
            for count in reversed(self.counts):
                self.display.stop(count)
        self.counts = []
        self._close()

    def _close(self) -> None:
        if self.display is not None:
            self.display.close()
        self.display = None


def trained(trainer: Trainer) -> int:
    """Optimizer steps made; batches seen, where there is no optimizer."""
    return trainer.global_step if trainer.optimizers else trainer.fit_loop.total_batch_idx + 1


def total_of(batches: Any) -> float:
    """Batches of all loaders."""
    return float(sum(batches)) if isinstance(batches, list) else float(batches)
