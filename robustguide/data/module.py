"""The data module over a source of images."""

from typing import Any

from lightning import LightningDataModule

from robustguide.data.crops import Augment
from robustguide.data.images import ImageSource, Samples
from robustguide.data.loaders import EvaluationLoader, Training, TrainingLoader
from robustguide.data.sources import Digits


class Classes(LightningDataModule):
    """A data module whose classes travel into checkpoints and are compared on the way back."""

    class_names: list[str]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def state_dict(self) -> dict[str, Any]:
        """The classes."""
        return {"num_classes": self.num_classes, "class_names": self.class_names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compares the classes.

        Raises:
            ValueError: If the checkpoint was trained on other classes.
        """
        theirs = state_dict.get("class_names", self.class_names)
        if theirs != self.class_names:
            raise ValueError(
                f"The checkpoint was trained on {len(theirs)} classes ({summary(theirs)}), the "
                f"data has {self.num_classes} ({summary(self.class_names)}); use the data that "
                "it was trained on, or fine-tune from an exported file."
            )


class Images(Classes):
    """Training, validation and test images; batches are `(x_0, y, index)`.

    Training batches resume exactly after any batch; evaluation hands out each image once.

    Args:
        source: The set of images; without it, scikit-learn's digits.
        batch_size: Training images in a batch of one process.
        eval_batch_size: Images in a batch of evaluation; without it, `batch_size`.
        augment: Random changes of training images.
        num_workers: Worker processes of each loader.
        seed: Of the order of training images and of their random changes.
        eval_limit: Only so many images of the validation and of the test split, evenly spread.
    """

    resume = "exact: the batches that an unbroken run would have had"

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
        super().__init__()
        self.source = source or Digits()
        sizes = {"batch_size": batch_size, "eval_batch_size": eval_batch_size}
        for name, value in (sizes | {"eval_limit": eval_limit}).items():
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; expected 1 or more.")
        if seed < 0 or num_workers < 0:
            raise ValueError(f"seed {seed} and num_workers {num_workers} must be 0 or more.")
        if augment is not None and not self.source.augments:
            raise ValueError(
                f"{type(self.source).__name__} cannot be changed by {type(augment).__name__}; "
                "leave augment out. Latents are mirrored where they were encoded so."
            )
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.augment, self.num_workers = augment, num_workers
        self.seed, self.eval_limit = seed, eval_limit

    @property
    def class_names(self) -> list[str]:  # type: ignore[override]
        """One a class, in the order of the labels."""
        return self.source.class_names

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return self.source.shape

    def split(self, name: str) -> Samples:
        """The split "train", "validation" or "test", without augmentation."""
        return self.source.split(name)

    def train_dataloader(self) -> TrainingLoader:
        """Shuffled batches, the same number on each process."""
        data = Training(self.split("train"), self.augment, self.seed)
        return TrainingLoader(data, self.batch_size, self.seed, self.trainer, self.num_workers)

    def val_dataloader(self) -> EvaluationLoader:
        """The validation images, each once."""
        return self._evaluation("validation")

    def test_dataloader(self) -> EvaluationLoader:
        """The test images, each once."""
        return self._evaluation("test")

    def predict_dataloader(self) -> EvaluationLoader:
        """The test images, each once."""
        return self._evaluation("test")

    def _evaluation(self, name: str) -> EvaluationLoader:
        split = self.split(name)
        workers, limit = self.num_workers, self.eval_limit
        return EvaluationLoader(split, self.eval_batch_size, self.trainer, workers, limit)


def summary(names: list[str]) -> str:
    """The first few names."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
