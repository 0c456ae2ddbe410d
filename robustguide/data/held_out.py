"""Held-out images, for what is fitted to networks that are finished."""

from robustguide.data.batches import spread
from robustguide.data.crops import Augment
from robustguide.data.images import ImageSource
from robustguide.data.loaders import EvaluationLoader, place
from robustguide.data.module import Images


class HeldOut(Images):
    """`fit` sees each image of the validation split once and in order; the test stays the test.

    A network was fitted to the training split and is surer of those images than of others: what
    is calibrated there believes its overconfidence. Test images would measure themselves.

    Args:
        source: The set of images; without it, scikit-learn's digits.
        batch_size: Images in a batch of one process.
        eval_batch_size: Takes the place of `batch_size` where it is given.
        augment: Must be null, since nothing is changed at random.
        num_workers: Worker processes of each loader.
        seed: Draws nothing here.
        eval_limit: Only so many images of each split, evenly spread.

    Raises:
        ValueError: For random changes; see also `Images`.
    """

    def __init__(
        self,
        source: ImageSource | None = None,
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        augment: Augment | None = None,
        num_workers: int = 0,
        seed: int = 0,
        eval_limit: int | None = None,
    ) -> None:
        super().__init__(
            source, batch_size, eval_batch_size, augment, num_workers, seed, eval_limit
        )
        if augment is not None:
            raise ValueError(
                f"HeldOut shows images as they are, but augment is {type(augment).__name__}; set "
                "data.augment to null."
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
