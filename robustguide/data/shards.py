"""WebDataset shards: tar files of images and labels, with a manifest that counts them.

The manifest states the classes, the shape, how the images were made, and how many samples each
shard holds; the number of steps of an epoch and who evaluates which sample follow from it.

The folder may be a URL, and a manifest in a local folder may name its shards by URLs or by
commands whose output they are (`pipe:COMMAND`), all as WebDataset opens them.

Training draws shards at random with replacement, each process and worker from a generator of its
own, seeded by the batch at which the epoch (or a resumed run) begins. So a resumed run is
statistically equal to an unbroken one, not exactly: it sees other images, drawn from the same
distribution. `results.json` of a resumed run says so.

A shard that is missing or cut short is tried again; if it still fails, training stops or leaves it
out, and `results.json` counts it. Evaluation always stops: each sample is to be measured once.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, Literal

from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_warn

from robustguide.data.batches import SHARDS, contiguous, steps_an_epoch
from robustguide.data.crops import Augment
from robustguide.data.errors import DataError
from robustguide.data.images import Batch
from robustguide.data.loaders import load, place, progress
from robustguide.data.manifest import Manifest
from robustguide.data.module import Classes
from robustguide.data.reading import Incident, Patience
from robustguide.data.tar import EvaluationShards, Told, TrainingShards


class ShardLoader:
    """A fixed number of batches of an iterable data set.

    Args:
        make: The data set, given the number of batches trained on so far.
        steps: Batches in an epoch.
        trainer: Whose progress counts; without it, each pass is the next epoch.
        num_workers: Worker processes.
        tell: Gets what happened to shards before each batch.
    """

    def __init__(
        self,
        make: Callable[[int], TrainingShards | EvaluationShards],
        steps: int,
        trainer: Trainer | None,
        num_workers: int,
        tell: Callable[[Sequence[Incident]], None],
    ) -> None:
        self.make, self.steps, self.trainer, self.num_workers = make, steps, trainer, num_workers
        self.tell = tell
        self.passes = 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        start, stop = self.passes * self.steps, self.steps
        self.passes += 1
        if self.trainer is not None:
            start, stop = progress(self.trainer)
        told: Iterator[Any] = load(Told(self.make(start)), None, self.num_workers)
        for batch, incidents in islice(told, stop):
            self.tell(incidents)
            yield batch

    def state_dict(self) -> dict[str, str]:
        """Tells Lightning that this loader resumes."""
        return {"resume": ShardImages.resume}

    def load_state_dict(self, state: dict[str, str]) -> None:
        """Nothing is restored."""


class ShardImages(Classes):
    """Training, validation and test images in shards; batches are `(x_0, y, index)`.

    The index of a training image is -1: it has no place in a split that is drawn at random.

    Args:
        root: Folder of the shards and of `manifest.json`, or its URL.
        batch_size: Training images in a batch of one process.
        eval_batch_size: Images in a batch of evaluation; without it, `batch_size`.
        augment: Random changes of training images.
        num_workers: Worker processes of each loader; no more than a process has shards.
        seed: Of the order of training images and of their random changes.
        buffer: Samples among which the next one is drawn.
        size: Crops and resizes to this many pixels; without it, the size in the manifest.
        on_bad_shard: Whether a training shard that cannot be read stops the run or is left out.
        retries: How often a shard that cannot be read is tried again before that.
        retry_pause: Seconds before the first new try; each further pause is twice as long.

    Attributes:
        bad_shards: How often each shard was tried again or skipped in this process, and why.
    """

    resume = "statistical: shards are drawn anew from the batch that comes next"

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
        on_bad_shard: Literal["error", "skip"] = "error",
        retries: int = 3,
        retry_pause: float = 1.0,
    ) -> None:
        super().__init__()
        numbers = {"batch_size": batch_size, "eval_batch_size": eval_batch_size, "buffer": buffer}
        for name, value in numbers.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; expected 1 or more.")
        if seed < 0 or num_workers < 0:
            raise ValueError(f"seed {seed} and num_workers {num_workers} must be 0 or more.")
        self.manifest = Manifest.read(root).resized(size)
        if self.manifest.encoding is not None:
            raise DataError(
                f"{root} holds latents, not images; read them with robustguide.data.Images and "
                "the source robustguide.data.LatentShards."
            )
        self.class_names, self.shape = self.manifest.class_names, self.manifest.shape
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.augment, self.num_workers, self.seed = augment, num_workers, seed
        self.buffer = buffer
        self.patience = partial(Patience, retries, retry_pause)
        self.on_bad_shard: Literal["error", "skip"] = on_bad_shard
        self.patience(on_bad_shard)  # complains here of what is out of range
        self.bad_shards: dict[str, dict[str, Any]] = {}

    def train_dataloader(self) -> ShardLoader:
        """The same number of batches on each process, counted once from the manifest."""
        rank, world = place(self.trainer)
        size, batch = self.manifest.count("train"), self.batch_size

        steps = steps_an_epoch(size, batch, world)
        make = partial(TrainingShards, self.manifest, batch, self.augment, self.buffer)
        return ShardLoader(
            lambda start: make(self.patience(self.on_bad_shard), (self.seed, SHARDS, start, rank)),
            steps,
            self.trainer,
            self._workers("train"),
            self.note,
        )

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
        shards = EvaluationShards(self.manifest, name, batches, self.patience())
        return ShardLoader(
            lambda start: shards, len(batches), None, self._workers(name), self.note
        )

    def note(self, incidents: Sequence[Incident]) -> None:
        """Counts what happened to shards, and warns of each the first time."""
        for what, shard, why in incidents:
            if shard not in self.bad_shards:
                self.bad_shards[shard] = {"retried": 0, "skipped": 0, "error": why}
                warnings.warn(f"{why} It was {what}; results.json counts this.", stacklevel=2)
            self.bad_shards[shard][what] += 1

    def _workers(self, name: str) -> int:
        shards = max(1, len(self.manifest.shards[name]) // place(self.trainer)[1])
        if self.num_workers > shards:
            rank_zero_warn(
                f"num_workers is {self.num_workers}, but a process has {shards} {name} shards; "
                f"using {shards} workers. Write more shards to use more."
            )
        return min(self.num_workers, shards)
