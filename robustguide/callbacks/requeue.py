"""Saving and requeueing a SLURM job at the end of a training batch."""

import signal
from types import FrameType
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

SIGNAL = signal.SIGUSR1


class Requeue(Callback):
    """Lets Lightning answer SLURM's signal when a batch is done, on all processes together.

    Lightning's handler saves at once, wherever the step is: between the optimizer and the moving
    average, or in a validation, where that average stands in for the weights. Such a run would
    not continue as if it had not been stopped; and processes that save at different points of a
    step wait for each other for ever. So the notice that SLURM gives (`--signal=USR1@SECONDS`)
    must be longer than a step and a validation.

    The signal may have been blocked since the process began, see `__main__.guard`; it arrives when
    training starts, and is blocked again when it ends.
    """

    def __init__(self) -> None:
        self.handler: Any = None
        self.is_told = False
        self.was_blocked = False

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Takes the place of Lightning's handler, which it has where it is to requeue the job."""
        found = signal.getsignal(SIGNAL)
        self.is_told = False
        if type(found).__module__.startswith("lightning."):
            self.handler = found
            signal.signal(SIGNAL, self.note)
        self.was_blocked = SIGNAL in signal.pthread_sigmask(signal.SIG_UNBLOCK, {SIGNAL})

    def note(self, signum: int, frame: FrameType | None) -> None:
        """The handler."""
        self.is_told = True

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Saves and requeues if any process was told to."""
        if self.handler is None:
            return
        if trainer.strategy.reduce_boolean_decision(self.is_told, all=False):
            self.is_told = False
            rank_zero_info(f"SLURM's signal: saving after step {trainer.global_step}.")
            self.handler(SIGNAL, None)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Nothing is left to save; what comes now must not end the process before it exports."""
        if self.was_blocked:
            signal.pthread_sigmask(signal.SIG_BLOCK, {SIGNAL})
        self.restore()

    def on_exception(
        self, trainer: Trainer, module: LightningModule, exception: BaseException
    ) -> None:
        """Puts Lightning's handler back."""
        self.restore()

    def restore(self) -> None:
        """Puts Lightning's handler back, which it will take away itself."""
        if self.handler is not None:
            signal.signal(SIGNAL, self.handler)
            self.handler = None
