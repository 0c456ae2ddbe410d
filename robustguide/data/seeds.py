"""The data set of a generation: numbers of images, and the label of each.

Image i is named by its number alone: its label is a function of i and its noise is drawn from a
generator that i seeds, so neither the batch size nor the number of processes changes it.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from lightning import Trainer
from torch import Tensor

from robustguide.data.batches import LABELS, strided
from robustguide.data.images import ImageSource, Samples
from robustguide.data.loaders import each_has_one, place
from robustguide.data.module import Classes
from robustguide.data.parts import PartLoader, parts_in

Seeds = tuple[Int[Tensor, " b"], Int[Tensor, " b"]]


class Labels(ABC):
    """Which class an image gets, by its number."""

    @abstractmethod
    def label(self, index: int, num_classes: int) -> int:
        """The class of image number `index`."""


class Balanced(Labels):
    """Each class equally often: the number modulo the number of classes."""

    def label(self, index: int, num_classes: int) -> int:
        """The remainder."""
        return index % num_classes


class Random(Labels):
    """Each class equally likely, drawn from the image's own generator.

    Args:
        seed: Another seed draws other labels.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def label(self, index: int, num_classes: int) -> int:
        """Draws the class."""
        return int(np.random.default_rng([self.seed, LABELS, index]).integers(num_classes))


class Listed(Labels):
    """The labels that are listed, over and over.

    Args:
        labels: Label of image 0, 1, ...; image number `len(labels)` gets the first one again.
    """

    def __init__(self, labels: list[int]) -> None:
        if not labels:
            raise ValueError("The list of labels is empty; expected at least one label.")
        self.labels = labels

    def label(self, index: int, num_classes: int) -> int:
        """Looks it up."""
        position = index % len(self.labels)
        y = self.labels[position]
        if not 0 <= y < num_classes:
            raise ValueError(
                f"Label {y} at position {position} of the list names no class; with "
                f"{num_classes} classes it must lie in 0..{num_classes - 1}."
            )
        return y


class SeedLoader:
    """Batches `(index (b,), y (b,))`, each number exactly once over all processes."""

    def __init__(
        self, indices: Sequence[int], y: Tensor, batch_size: int, trainer: Trainer | None = None
    ) -> None:
        self.indices, self.y = indices, y
        self.batches = strided(range(len(indices)), batch_size, *place(trainer))

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Seeds]:
        for rows in self.batches:
            yield torch.tensor([self.indices[row] for row in rows]), self.y[rows]


class SeedData(Classes):
    """Numbers and labels of the images to generate, for tests, predictions and searches.

    Args:
        count: How many images.
        first: Number of the first one; array tasks take disjoint ranges.
        batch_size: Images that one process makes at a time.
        num_classes: Of the denoiser's labels.
        class_names: One a class; without them, the numbers.
        labels: Rule for labels; without it, each class equally often.
        reference: Real images with which the generated ones are compared.
        reference_split: Which of their splits.
        parts: Folder of the parts that other runs made of these images, see
            `robustguide.data.parts`; a test then takes them in, in place of sampling.

    Raises:
        ValueError: For numbers that make no sense, labels that are no class's, and parts that do
            not hold each image exactly once.
    """

    def __init__(
        self,
        count: int,
        num_classes: int,
        first: int = 0,
        batch_size: int = 64,
        class_names: list[str] | None = None,
        labels: Labels | None = None,
        reference: ImageSource | None = None,
        reference_split: str = "train",
        parts: str | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("count", count), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name} is {value}; expected 1 or more.")
        if first < 0:
            raise ValueError(f"first is {first}; the numbers of images begin at 0.")
        self.class_names = class_names or [str(y) for y in range(num_classes)]
        if len(self.class_names) != num_classes:
            raise ValueError(
                f"There are {len(self.class_names)} class names for num_classes {num_classes}; "
                "expected one a class."
            )
        if reference is not None and reference.num_classes != num_classes:
            raise ValueError(
                f"The reference images have {reference.num_classes} classes, num_classes is "
                f"{num_classes}; they must agree."
            )
        self.indices, self.batch_size = range(first, first + count), batch_size
        self.labels, self.done = labels or Balanced(), frozenset[int]()
        y = [self.labels.label(index, num_classes) for index in self.indices]
        self.y = torch.tensor(y, device="cpu")  # whatever the default: the trainer moves batches
        wrong = self.y[(self.y < 0) | (self.y >= num_classes)].tolist()
        if wrong:  # here, because on a GPU a wrong index aborts the process
            raise ValueError(
                f"{type(self.labels).__name__} gives label {wrong[0]}; with {num_classes} classes "
                f"labels must lie in 0..{num_classes - 1}."
            )
        self.reference_source, self.reference_split = reference, reference_split
        self.parts = parts_in(Path(parts), self.indices) if parts is not None else None

    @property
    def reference(self) -> Samples | None:
        """The real images, map-style: place -> (x_0, y, place)."""
        return self.reference_source.split(self.reference_split) if self.reference_source else None

    def setup(self, stage: str) -> None:
        """Lets a process have nothing to predict; there, none waits for another one's sums."""
        self.allow_zero_length_dataloader_with_multiple_devices = stage == "predict"

    def test_dataloader(self) -> SeedLoader | PartLoader:
        """All the numbers, or the parts that hold them.

        Raises:
            ValueError: For fewer images than processes, and parts in several processes.
        """
        if self.parts is None:
            return self.seed_loader()
        if (world := place(self.trainer)[1]) > 1:
            raise ValueError(f"One process puts parts together, got {world}; set devices to 1.")
        return PartLoader(self.parts)

    def seed_loader(self) -> SeedLoader:
        """All the numbers."""
        each_has_one(len(self.indices), place(self.trainer)[1])
        return SeedLoader(self.indices, self.y, self.batch_size, self.trainer)

    def train_dataloader(self) -> SeedLoader:
        """All the numbers, the same in every epoch; for what is chosen by looking at samples.

        Raises:
            ValueError: When processes would have unequally many batches: in training they wait for
                each other at each one.
        """
        world = place(self.trainer)[1]
        if self.batch_size == 1 and len(self.indices) % world:
            raise ValueError(
                f"In batches of one, {len(self.indices)} numbers cannot be shared evenly by "
                f"{world} processes; set batch_size to 2 or more."
            )
        return self.seed_loader()

    def leave_out(self, done: Collection[int]) -> None:
        """Numbers of images that are there already, and that predictions need not make again."""
        self.done = frozenset(done)

    def predict_dataloader(self) -> SeedLoader:
        """The numbers that are left."""
        rows = [row for row, index in enumerate(self.indices) if index not in self.done]
        indices = [self.indices[row] for row in rows]
        return SeedLoader(indices, self.y[rows], self.batch_size, self.trainer)
