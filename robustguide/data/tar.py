"""Samples of shards, for training at random and for evaluation in order."""

import io
import random
from collections.abc import Iterator
from functools import partial
from itertools import accumulate, count, islice, pairwise

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info
from webdataset.filters import shuffle

from robustguide.data.crops import Augment, center_crop
from robustguide.data.errors import DataError
from robustguide.data.forms import SUFFIX, from_raw
from robustguide.data.images import Batch, Crop, Sample, as_sample, collate, read_image
from robustguide.data.manifest import Manifest
from robustguide.data.reading import Incident, Patience, Raw

SUFFIXES = ("png", "jpg", "jpeg", "webp")
RAW = SUFFIX["raw"]


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
        suffix = next((suffix for suffix in (*SUFFIXES, RAW) if suffix in raw), None)
        if suffix is None or "cls" not in raw:
            raise DataError(
                f"The sample {name} has no {'label (cls)' if suffix else 'image'}; expected an "
                f"image ({', '.join((*SUFFIXES, RAW))}) and its label as a number (cls)."
            )
        if suffix == RAW:
            image = from_raw(raw[suffix], name)
        else:
            image = read_image(io.BytesIO(raw[suffix]), name)
        try:
            y = int(raw["cls"])
        except ValueError as error:
            raise DataError(
                f"The label of {name} is {raw['cls']!r}; expected a number."
            ) from error
        return as_sample(image, y, index, self.shape, self.num_classes, lambda _: name, crop)


class TrainingShards(IterableDataset[Batch]):
    """Endless batches of samples of shards drawn with replacement, through a shuffling buffer.

    A shard that is skipped is replaced by the next one drawn.
    """

    def __init__(
        self,
        manifest: Manifest,
        batch_size: int,
        augment: Augment | None,
        buffer: int,
        patience: Patience,
        seed: tuple[int, ...],
    ) -> None:
        self.manifest, self.batch_size, self.augment = manifest, batch_size, augment
        self.buffer, self.patience, self.seed = buffer, patience, seed

    def __iter__(self) -> Iterator[Batch]:
        """Batches of this worker."""
        worker = get_worker_info()
        rng = np.random.default_rng([*self.seed, worker.id if worker else 0])
        order = random.Random(int(rng.integers(2**63)))
        # Uniform over shards is uniform over samples, because all of a drawn shard is read.
        shards = self.manifest.shards["train"]
        drawn = (shards[rng.integers(len(shards))] for _ in count())
        read = self.patience.read_endlessly(drawn, len(shards))
        raws = shuffle(self.buffer, initial=self.buffer, rng=order)(read)
        crop = partial(self.augment, rng=rng) if self.augment else center_crop
        reader = Reader(self.manifest)
        while True:
            batch = list(islice(raws, self.batch_size))  # reading alone is faster than in turns
            yield collate([reader(raw, -1, crop) for raw in batch])


class EvaluationShards(IterableDataset[Batch]):
    """Batches given by the places of their samples in the split, which ascend.

    A shard that cannot be read is an error whatever is asked of training, because each sample is
    to be measured once.
    """

    def __init__(
        self,
        manifest: Manifest,
        split: str,
        batches: list[list[int]],
        patience: Patience | None = None,
    ) -> None:
        self.manifest, self.shards, self.batches = manifest, manifest.shards[split], batches
        self.patience = patience or Patience()

    def __iter__(self) -> Iterator[Batch]:
        """A contiguous part of the batches for each worker, which opens only shards it needs."""
        worker = get_worker_info()
        part, parts = (worker.id, worker.num_workers) if worker else (0, 1)
        ends = [len(self.batches) * i // parts for i in (part, part + 1)]
        mine = self.batches[slice(*ends)]
        samples = self._samples({index for batch in mine for index in batch})
        for batch in mine:
            yield collate(list(islice(samples, len(batch))))

    def _samples(self, wanted: set[int]) -> Iterator[Sample]:
        reader = Reader(self.manifest)
        bounds = pairwise(accumulate((shard.count for shard in self.shards), initial=0))
        for shard, (begin, end) in zip(self.shards, bounds, strict=True):
            if wanted.isdisjoint(range(begin, end)):
                continue
            for index, raw in enumerate(self.patience.read(shard), begin):
                if index in wanted:
                    yield reader(raw, index, center_crop)


class Told(IterableDataset[tuple[Batch, list[Incident]]]):
    """Batches, each with what happened to shards while it was read: also in a worker process."""

    def __init__(self, shards: TrainingShards | EvaluationShards) -> None:
        self.shards = shards

    def __iter__(self) -> Iterator[tuple[Batch, list[Incident]]]:
        """The same batches."""
        for batch in self.shards:
            yield batch, self.shards.patience.taken()
