"""Moving average of weights."""

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn

from robustguide.callbacks.reporting import Reporting, callbacks_of


class EMA(WeightAveraging):
    """Exponential moving average, which validation, checkpoints and exports use.

    In a trainer checkpoint `state_dict` is the average and `current_model_state` the raw weights;
    a resumed run continues both. Buffers are copied: an average of counters is nonsense.

    Args:
        decay: Share of the average that stays at every optimizer step, in [0, 1).
    """

    def __init__(self, decay: float = 0.9999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}; 0.9999 is usual.")
        average: Any = get_ema_multi_avg_fn  # not annotated by torch
        super().__init__(use_buffers=False, multi_avg_fn=average(decay))
        self.is_handed_over = False

    def hand_over(self, module: LightningModule) -> None:
        """Puts the average into the module, where the end of training did not.

        Training that is resumed with no step left never ends, since it does not begin.
        """
        if self._average_model is not None and not self.is_handed_over:
            self._copy_average_to_current(module)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Puts the average into the module."""
        super().on_train_end(trainer, module)
        self.is_handed_over = True  # what a module measures of it then is its own

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Checks that callbacks which measure come first.

        Raises:
            ValueError: When one comes later: it would see raw weights, because this callback puts
                them back at the end of a validation epoch.
        """
        callbacks = callbacks_of(trainer)
        late = [c for c in callbacks[callbacks.index(self) :] if isinstance(c, Reporting)]
        if late:
            raise ValueError(
                f"{type(late[0]).__name__} stands behind EMA in trainer.callbacks and would "
                "measure the raw weights; list EMA last."
            )
        self.is_handed_over = False
