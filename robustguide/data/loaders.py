"""Loaders that hand out the batches of `batches.py`, and resume where the trainer is.

Lightning takes them as they are: it puts no distributed sampler into what is not PyTorch's own
loader, whatever `use_distributed_sampler` says.
"""

import gc
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from multiprocessing import get_start_method
from typing import Any

import numpy as np
import torch
from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader, Dataset

from robustguide.data.batches import (
    AUGMENT,
    Key,
    spread,
    steps_an_epoch,
    strided,
    training_batches,
)
from robustguide.data.crops import Augment
from robustguide.data.errors import DataError
from robustguide.data.images import Batch, Sample, Samples, collate


class Training(Dataset[Sample]):
    """Maps (epoch, place) to an augmented sample, the same in every process."""

    def __init__(self, split: Samples, augment: Augment | None, seed: int) -> None:
        self.split, self.augment, self.seed = split, augment, seed

    def __getitem__(self, key: Key) -> Sample:
        """The sample of this epoch."""
        epoch, index = key
        if self.augment is None and not self.split.is_random:
            return self.split[index]
        rng = np.random.default_rng([self.seed, AUGMENT, epoch, index])
        return self.split.drawn(index, self.augment, rng)

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """A batch of them; PyTorch's loader asks for this."""
        if self.augment is None and not self.split.is_random:
            return self.split.__getitems__([index for _, index in keys])
        return collate([self[key] for key in keys])


class TrainingLoader:
    """Batches of an epoch; without a trainer, each pass over it is the next epoch.

    The trainer's count of finished batches is asked when the first batch is due, since only then
    does a resumed trainer know it; a batch that a signal interrupted comes again.

    Args:
        data: What to load.
        batch_size: Images in a batch of one process.
        seed: Of the order.
        trainer: Whose progress decides where to begin.
        num_workers: Worker processes.
    """

    def __init__(
        self,
        data: Training,
        batch_size: int,
        seed: int = 0,
        trainer: Trainer | None = None,
        num_workers: int = 0,
    ) -> None:
        self.data, self.batch_size, self.seed = data, batch_size, seed
        self.trainer, self.num_workers = trainer, num_workers
        self.rank, self.world = place(trainer)
        self.steps = steps_an_epoch(len(data.split), batch_size, self.world)
        self.passes = 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        start, stop = self.passes * self.steps, self.steps
        self.passes += 1
        # A generator: nothing below runs before the first batch is asked for.
        if self.trainer is not None:
            start, stop = progress(self.trainer)
        size = len(self.data.split)
        keys = training_batches(size, self.batch_size, self.seed, self.rank, self.world, start)
        # Workers read ahead, so they must not see a batch that this epoch does not hand out.
        yield from load(self.data, islice(keys, stop), self.num_workers)

    def state_dict(self) -> dict[str, int]:
        """What the order depends on; that there is a state tells Lightning that it resumes."""
        return {
            "images": len(self.data.split),
            "batch_size": self.batch_size,
            "seed": self.seed,
            "processes": self.world,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Says so if the order will not be that of an unbroken run."""
        now = self.state_dict()
        changed = [f"{k} was {state.get(k)}, is {now[k]}" for k in now if state.get(k) != now[k]]
        if changed:
            rank_zero_warn(
                "The training images will not come in the order of an unbroken run, because "
                f"since the checkpoint {'; '.join(changed)}."
            )


class EvaluationLoader:
    """Each sample exactly once over all processes, in order, with none repeated to fill a batch.

    Args:
        split: What to load.
        batch_size: Images in a batch of one process.
        trainer: Tells the process.
        num_workers: Worker processes.
        limit: Only so many images, evenly spread over the split.
    """

    def __init__(
        self,
        split: Samples,
        batch_size: int,
        trainer: Trainer | None = None,
        num_workers: int = 0,
        limit: int | None = None,
    ) -> None:
        self.split, self.num_workers = split, num_workers
        rows = spread(len(split), limit)
        rank, world = place(trainer)
        each_has_one(len(rows), world)
        self.batches = strided(rows, batch_size, rank, world)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        yield from load(self.split, self.batches, self.num_workers)


def each_has_one(count: int, world: int) -> None:
    """Refuses to measure with a process that has nothing: the others would wait for its sums.

    Raises:
        ValueError: For fewer images than processes.
    """
    if count < world:
        raise ValueError(
            f"There are {count} images for {world} processes, and each must measure one; use "
            "fewer devices or more images."
        )


def load(
    data: Dataset[Any], batches: Iterable[list[Any]] | None, num_workers: int
) -> Iterator[Batch]:
    """Loads the batches; without them, hands on those that an iterable data set makes itself."""
    options: dict[str, Any] = {"batch_sampler": batches}
    if batches is None:
        options = {"batch_size": None}
    loader = DataLoader(
        data,
        **options,
        num_workers=num_workers,
        collate_fn=as_it_is,  # the data sets make batches themselves
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=partial(begin, os.getpid() if get_start_method() == "fork" else None),
        # Otherwise making an iterator draws from the global generator, and a resumed run differs.
        generator=torch.Generator(),
    )
    failure = None
    try:
        yield from loader
    except DataError as error:
        failure = error.plain()
        # Its traceback holds on to the workers, which would then end only by a timeout.
        error.__traceback__ = None
    if failure is not None:
        raise failure


def as_it_is(batch: Any) -> Any:
    """The batch."""
    return batch


def begin(starter: int | None, worker: int) -> None:
    """What a worker process does first.

    It ends where the process that forked it has been killed meanwhile: PyTorch watches over that
    one only from now on, and would take whatever adopted the worker for it, for ever. A worker
    that a server started (`starter` is null) has that one as its parent all its life.
    """
    ignore_requeue_signal(worker)
    gc.freeze()  # a collection would go through all that the starter imported, and copy its memory
    if starter is not None and os.getppid() != starter:
        os._exit(1)


def ignore_requeue_signal(worker: int) -> None:
    """Workers inherit Lightning's handler of Slurm's signal, and would all save and requeue."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def place(trainer: Trainer | None) -> tuple[int, int]:
    """Rank and number of processes."""
    return (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)


def progress(trainer: Trainer) -> tuple[int, int]:
    """Batches trained on so far, and batches left in the trainer's epoch.

    The epoch's number is not asked for: a trainer that stops within an epoch counts it as done.
    """
    batches = trainer.fit_loop.epoch_loop.batch_progress
    left = int(trainer.num_training_batches) - batches.current.completed
    # With overfit_batches every epoch is to see the same few batches.
    return (0 if getattr(trainer, "overfit_batches", 0) else batches.total.completed), left
