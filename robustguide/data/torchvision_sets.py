"""Classification data sets of torchvision as sources."""

import inspect
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torchvision
from PIL import Image

from robustguide.data.errors import DataError, Unreadable
from robustguide.data.images import ImageSource, Split
from robustguide.data.splits import hold_out


class Torchvision(ImageSource):
    """A classification data set of torchvision, such as CIFAR10 or ImageNet.

    Its test images are the split `test`, or `val` where there is no `test` (ImageNet); the
    validation images are the split `val` where there is another one to test on, else held out
    of the training images.

    Args:
        dataset: Name of the class in torchvision.datasets.
        root: Its folder.
        size: Crops and resizes to this many pixels; without it images keep their size, which
            must then be one for all.
        channels: 1 for greyscale, 3 for colour.
        validation_fraction: Fraction of each class held out of the training images.
        class_names: For the data sets that do not tell.
        download: Fetch what is missing; otherwise nothing is ever fetched.
    """

    def __init__(
        self,
        dataset: str,
        root: str,
        size: int | None = None,
        channels: int = 3,
        validation_fraction: float = 0.1,
        class_names: list[str] | None = None,
        download: bool = False,
    ) -> None:
        kind: Any = getattr(torchvision.datasets, dataset, None)
        is_kind = inspect.isclass(kind) and issubclass(kind, torchvision.datasets.VisionDataset)
        if not is_kind or not {"train", "split"} & set(inspect.signature(kind).parameters):
            raise ValueError(
                f"torchvision.datasets has no data set {dataset!r} with an argument train or "
                "split; expected a name such as CIFAR10, FashionMNIST or ImageNet."
            )
        if download and "download" not in inspect.signature(kind).parameters:
            raise ValueError(
                f"torchvision cannot download {dataset}; put its files into {root!r} and set "
                "download: false."
            )
        self.kind, self.name, self.root, self.size = kind, dataset, root, size
        self.channels, self.validation_fraction = channels, validation_fraction
        self.download, self._given_names = download, class_names

    @cached_property
    def class_names(self) -> list[str]:  # type: ignore[override]
        """As the data set tells them; the first one where a class has several."""
        names = self._given_names or getattr(self._train[0], "classes", None)
        if names is None:
            raise ValueError(f"{self.name} does not name its classes; state class_names.")
        return [name if isinstance(name, str) else name[0] for name in names]

    @cached_property
    def shape(self) -> tuple[int, int, int]:  # type: ignore[override]
        """Of the first image, unless a size is given."""
        if self.size is not None:
            return self.channels, self.size, self.size
        width, height = self._train[0][0][0].size
        if width != height:
            raise ValueError(f"The images of {self.name} are not square; state a size.")
        return self.channels, height, width

    @cached_property
    def _train(self) -> tuple[Any, str]:
        return self._load("train", "trainval")

    @cached_property
    def _test(self) -> tuple[Any, str]:
        return self._load("test", "val")

    @cached_property
    def _validation(self) -> Any | None:
        """A validation split of its own, if there is one that is not the test split."""
        if "split" not in inspect.signature(self.kind).parameters or self._test[1] != "test":
            return None
        try:
            return self._load("val", "valid")[0]
        except ValueError as error:
            if isinstance(error, DataError):
                raise
            return None

    def open(self, name: str) -> Split:
        """Opens what torchvision has, and holds out what it has not."""
        if name == "test":
            return TorchvisionSplit(self, self._test[0])
        if self._validation is not None:
            return TorchvisionSplit(
                self, self._validation if name == "validation" else self._train[0]
            )
        rows, labels = range(len(self._train[0])), labels_of(self._train[0])
        held = hold_out(rows, labels, self.validation_fraction)
        return TorchvisionSplit(self, self._train[0], held[name == "validation"])

    def _load(self, *splits: str) -> tuple[Any, str]:
        """The first of these splits that the class knows (it raises ValueError for others)."""
        by_name = "split" in inspect.signature(self.kind).parameters
        fetch = {"download": True} if self.download else {}
        for split in splits:
            which = {"split": split} if by_name else {"train": split == "train"}
            try:
                return self.kind(self.root, **which, **fetch), split
            except ValueError:
                continue
            except (RuntimeError, OSError) as error:
                raise DataError(
                    f"torchvision's {self.name} ({split}) is not in {Path(self.root).resolve()}: "
                    f"{error} Put its files there, or set download: true if it may be fetched."
                ) from error
        raise ValueError(f"torchvision's {self.name} has no split {' or '.join(splits)}.")


class TorchvisionSplit(Split):
    """A data set of torchvision, or chosen rows of it."""

    def __init__(
        self, source: Torchvision, dataset: Any, rows: Sequence[int] | None = None
    ) -> None:
        super().__init__(source.shape, source.num_classes)
        self.name, self.dataset = source.name, dataset
        self.rows = range(len(dataset)) if rows is None else rows
        self.keeps_size = source.size is None

    def __len__(self) -> int:
        return len(self.rows)

    def load(self, index: int) -> tuple[Image.Image, int]:
        """Asks torchvision, which decodes."""
        row = self.rows[index]
        try:
            image, y = self.dataset[row]
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise Unreadable(
                f"Cannot read {self.describe(index)}: {error}. Fetch the data set again."
            ) from error
        if self.keeps_size and image.size != (self.shape[2], self.shape[1]):
            raise DataError(
                f"{self.describe(index)} has {image.size[0]} x {image.size[1]} pixels, others "
                f"have {self.shape[2]} x {self.shape[1]}; state a size."
            )
        return image, int(y)

    def describe(self, index: int) -> str:
        """Names the row, and the file where there is one."""
        files = getattr(self.dataset, "samples", None)
        return self.key(index) + (f" ({files[self.rows[index]][0]})" if files else "")

    def key(self, index: int) -> str:
        """Names the row."""
        return f"row {self.rows[index]} of {self.name}"


def labels_of(dataset: Any) -> list[int]:
    """The labels of a data set of torchvision, which keeps them under several names."""
    for name in ("targets", "labels", "_labels", "_samples"):
        labels = getattr(dataset, name, None)
        if labels is not None:
            return [int(y[1] if isinstance(y, tuple) else y) for y in labels]
    return [0] * len(dataset)  # unknown without decoding: held out of the whole
