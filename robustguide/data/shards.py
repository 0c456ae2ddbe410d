"""WebDataset shards: tar files of images and labels, with a manifest that counts them.

The manifest states the classes, the shape, how the images were made, and how many samples each
shard holds; the number of steps of an epoch and who evaluates which sample follow from it.

Training draws shards at random with replacement, each process and worker from a generator of its
own, seeded by the batch at which the epoch (or a resumed run) begins. A resumed run sees other
images than an unbroken one would have seen, drawn from the same distribution.
"""

import io
import random
import tarfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import accumulate, count, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import IterableDataset, get_worker_info
from webdataset.filters import shuffle
from webdataset.tariterators import group_by_keys, tar_file_expander

from robustguide.data.batches import (
    SHARDS,
    contiguous,
    load,
    place,
    progress,
    steps_an_epoch,
)
from robustguide.data.crops import Augment, center_crop
from robustguide.data.errors import DataError
from robustguide.data.images import Batch, Crop, Sample, as_sample, collate, read_image
from robustguide.data.manifest import Manifest
from robustguide.data.module import Classes

Raw = dict[str, Any]
SUFFIXES = ("png", "jpg", "jpeg", "webp")


def read_shards(paths: Iterable[Path]) -> Iterator[Raw]:
    """The undecoded samples of shards, in order.

    Raises:
        DataError: If a shard is cut or not a tar file.
    """
    for path in paths:
        # Opened here, because webdataset leaves closing to the garbage collector.
        with path.open("rb") as stream:
            try:
                yield from group_by_keys(tar_file_expander([{"url": str(path), "stream": stream}]))
            except (tarfile.TarError, EOFError, ValueError) as error:
                raise DataError(
                    f"Cannot read the shard {path}: {error.args[0]}. Make it again."
                ) from error


class Reader:
    """Turns undecoded samples into `(x_0, y, index)`."""

    def __init__(self, manifest: Manifest) -> None:
        self.shape, self.num_classes = manifest.shape, len(manifest.class_names)

    def __call__(self, raw: Raw, index: int, crop: Crop) -> Sample:
        """Decodes the image and the label.

        Raises:
            DataError: If either is missing or cannot be read.
        """
        name = f"{raw['__key__']} in {raw['__url__']}"
        suffix = next((suffix for suffix in SUFFIXES if suffix in raw), None)
        if suffix is None or "cls" not in raw:
            raise DataError(
                f"The sample {name} has no {'label (cls)' if suffix else 'image'}; expected an "
                f"image ({', '.join(SUFFIXES)}) and its label as a number (cls)."
            )
        image = read_image(io.BytesIO(raw[suffix]), name)
        try:
            y = int(raw["cls"])
        except ValueError as error:
            raise DataError(
                f"The label of {name} is {raw['cls']!r}; expected a number."
            ) from error
        return as_sample(image, y, index, self.shape, self.num_classes, lambda _: name, crop)


class TrainingShards(IterableDataset[Batch]):
    """Endless batches of samples of shards drawn with replacement, through a shuffling buffer."""

    def __init__(
        self,
        manifest: Manifest,
        batch_size: int,
        augment: Augment | None,
        buffer: int,
        seed: tuple[int, ...],
    ) -> None:
        self.manifest, self.batch_size, self.augment = manifest, batch_size, augment
        self.buffer, self.seed = buffer, seed

    def __iter__(self) -> Iterator[Batch]:
        """Batches of this worker."""
        worker = get_worker_info()
        rng = np.random.default_rng([*self.seed, worker.id if worker else 0])
        order = random.Random(int(rng.integers(2**63)))
        # Uniform over shards is uniform over samples, because all of a drawn shard is read.
        paths = [shard.path for shard in self.manifest.shards["train"]]
        drawn = (paths[rng.integers(len(paths))] for _ in count())
        raws = shuffle(self.buffer, initial=self.buffer, rng=order)(read_shards(drawn))
        crop = partial(self.augment, rng=rng) if self.augment else center_crop
        reader = Reader(self.manifest)
        while True:
            yield collate([reader(raw, -1, crop) for raw in islice(raws, self.batch_size)])


class EvaluationShards(IterableDataset[Batch]):
    """Batches given by the places of their samples in the split, which ascend."""

    def __init__(self, manifest: Manifest, split: str, batches: list[list[int]]) -> None:
        self.manifest, self.shards, self.batches = manifest, manifest.shards[split], batches

    def __iter__(self) -> Iterator[Batch]:
        """A contiguous part of the batches for each worker, which opens only shards it needs."""
        worker = get_worker_info()
        part, parts = (worker.id, worker.num_workers) if worker else (0, 1)
        ends = [len(self.batches) * i // parts for i in (part, part + 1)]
        mine = self.batches[slice(*ends)]
        samples = self._samples({index for batch in mine for index in batch})
        for batch in mine:
            yield collate(list(islice(samples, len(batch))))
        for _ in samples:  # reads the last shard to its end, where its count is checked
            pass

    def _samples(self, wanted: set[int]) -> Iterator[Sample]:
        reader = Reader(self.manifest)
        bounds = pairwise(accumulate((shard.count for shard in self.shards), initial=0))
        for shard, (begin, end) in zip(self.shards, bounds, strict=True):
            if wanted.isdisjoint(range(begin, end)):
                continue
            found = 0
            for found, raw in enumerate(read_shards([shard.path]), 1):
                if begin + found - 1 in wanted:
                    yield reader(raw, begin + found - 1, center_crop)
            if found != shard.count:
                raise DataError(
                    f"The shard {shard.path} holds {found} samples, the manifest says "
                    f"{shard.count}; make the shard or the manifest again."
                )


class ShardLoader:
    """A fixed number of batches of an iterable data set.

    Args:
        make: The data set, given the number of batches trained on so far.
        steps: Batches in an epoch.
        trainer: Whose progress counts; without it, each pass is the next epoch.
        num_workers: Worker processes.
    """

    def __init__(
        self,
        make: Callable[[int], IterableDataset[Batch]],
        steps: int,
        trainer: Trainer | None,
        num_workers: int,
    ) -> None:
        self.make, self.steps, self.trainer, self.num_workers = make, steps, trainer, num_workers
        self.passes = 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        start, stop = self.passes * self.steps, self.steps
        self.passes += 1
        if self.trainer is not None:
            start, stop = progress(self.trainer)
        yield from islice(load(self.make(start), None, self.num_workers), stop)

    def state_dict(self) -> dict[str, str]:
        """Tells Lightning that this loader resumes."""
        return {"resume": "statistical: shards are drawn anew from the batch that comes next"}

    def load_state_dict(self, state: dict[str, str]) -> None:
        """Nothing is restored."""


class ShardImages(Classes):
    """Training, validation and test images in shards; batches are `(x_0, y, index)`.

    The index of a training image is -1: it has no place in a split that is drawn at random.

    Args:
        root: Folder of the shards and of `manifest.json`.
        batch_size: Training images in a batch of one process.
        eval_batch_size: Images in a batch of evaluation; without it, `batch_size`.
        augment: Random changes of training images.
        num_workers: Worker processes of each loader; no more than a process has shards.
        seed: Of the order of training images and of their random changes.
        buffer: Samples among which the next one is drawn.
        size: Crops and resizes to this many pixels; without it, the size in the manifest.
    """

    def __init__(
        self,
        root: str,
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        augment: Augment | None = None,
        num_workers: int = 0,
        seed: int = 0,
        buffer: int = 1000,
        size: int | None = None,
    ) -> None:
        super().__init__()
        numbers = {"batch_size": batch_size, "eval_batch_size": eval_batch_size, "buffer": buffer}
        for name, value in numbers.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; expected 1 or more.")
        if seed < 0 or num_workers < 0:
            raise ValueError(f"seed {seed} and num_workers {num_workers} must be 0 or more.")
        self.manifest = Manifest.read(Path(root)).resized(size)
        self.class_names, self.shape = self.manifest.class_names, self.manifest.shape
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.augment, self.num_workers, self.seed = augment, num_workers, seed
        self.buffer = buffer

    def train_dataloader(self) -> ShardLoader:
        """The same number of batches on each process, counted once from the manifest."""
        rank, world = place(self.trainer)
        size, batch = self.manifest.count("train"), self.batch_size

        def make(start: int) -> TrainingShards:
            seed = (self.seed, SHARDS, start, rank)
            return TrainingShards(self.manifest, batch, self.augment, self.buffer, seed)

        steps = steps_an_epoch(size, batch, world)
        return ShardLoader(make, steps, self.trainer, self._workers("train"))

    def val_dataloader(self) -> ShardLoader:
        """The validation images, each once."""
        return self._evaluation("validation")

    def test_dataloader(self) -> ShardLoader:
        """The test images, each once."""
        return self._evaluation("test")

    def predict_dataloader(self) -> ShardLoader:
        """The test images, each once."""
        return self._evaluation("test")

    def _evaluation(self, name: str) -> ShardLoader:
        size = self.manifest.count(name)
        if not size:
            raise DataError(f"There are no {name} shards; write some, or skip this evaluation.")
        batches = contiguous(size, self.eval_batch_size, *place(self.trainer))
        shards = EvaluationShards(self.manifest, name, batches)
        return ShardLoader(lambda start: shards, len(batches), None, self._workers(name))

    def _workers(self, name: str) -> int:
        shards = max(1, len(self.manifest.shards[name]) // place(self.trainer)[1])
        if self.num_workers > shards:
            rank_zero_warn(
                f"num_workers is {self.num_workers}, but a process has {shards} {name} shards; "
                f"using {shards} workers. Write more shards to use more."
            )
        return min(self.num_workers, shards)
