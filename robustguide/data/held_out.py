"""Held-out images, for what is fitted to networks that are finished."""

from typing import Any

from robustguide.data.batches import spread
from robustguide.data.loaders import EvaluationLoader, place
from robustguide.data.module import Images


class HeldOut(Images):
    """`fit` sees each image of the validation split once and in order; the test stays the test.

    A network was fitted to the training split and is surer of those images than of others: what
    is calibrated there believes its overconfidence. Test images would measure themselves.

    Args:
        *args: See `Images`; nothing here is drawn at random, so that `seed` changes nothing.
        **named: Likewise; `augment` must be null.

    Raises:
        ValueError: For random changes; see also `Images`.
    """

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        if self.augment is not None:
            raise ValueError(
                "HeldOut shows images as they are, but augment is "
                f"{type(self.augment).__name__}; set data.augment to null."
            )

    def train_dataloader(self) -> EvaluationLoader:  # type: ignore[override]  # each once, unshuffled
        """The validation images, each once, in as many batches on every process.

        Lightning lets processes agree at every batch of training, where evaluation does not.
        """
        loader = super().val_dataloader()
        fewest = len(spread(len(loader.split), self.eval_limit)) // place(self.trainer)[1]
        if len(loader.batches) > fewest:  # batches of one, and another process has an image less
            last = loader.batches.pop()
            loader.batches[-1] = [*loader.batches[-1], *last]
        return loader

    def val_dataloader(self) -> list[EvaluationLoader]:  # type: ignore[override]  # none
        """None: these images would be read twice."""
        return []
