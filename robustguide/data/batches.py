"""Which samples are in which batch, as pure functions, and the loaders that follow them.

Training goes through the permutation of epoch 0, then that of epoch 1, and so on; each rank
takes every world-th sample and what does not fill a batch on every rank is left out of the epoch.
Batch number k of a rank is a function of (seed, k, rank, world) alone, so a run that was stopped
anywhere resumes at batch k as if it had not been.
"""

import math
import signal
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader, Dataset

from robustguide.data.crops import Augment
from robustguide.data.errors import DataError
from robustguide.data.images import Batch, Sample, Split, collate

Key = tuple[int, int]  # epoch, and place in the split

# First words of seeds, so that streams of one user's seed never meet.
ORDER, AUGMENT, LABELS, SHARDS = range(4)


def training_batches(
    size: int, batch_size: int, seed: int, rank: int, world: int, start: int = 0
) -> Iterator[list[Key]]:
    """The endless batches of a rank, from batch number `start` on."""
    for epoch in count(start // steps_an_epoch(size, batch_size, world)):
        order = np.random.default_rng([seed, ORDER, epoch]).permutation(size)[rank::world]
        steps = steps_an_epoch(size, batch_size, world)
        for step in range(start % steps, steps):
            rows = order[step * batch_size : (step + 1) * batch_size]
            yield [(epoch, row) for row in rows.tolist()]
        start = 0


def steps_an_epoch(size: int, batch_size: int, world: int) -> int:
    """Full batches that every rank has in an epoch.

    Raises:
        ValueError: If there is none.
    """
    steps = size // world // batch_size
    if not steps:
        raise ValueError(
            f"The training split has {size} images, too few for a batch of {batch_size} on "
            f"each of {world} processes; lower batch_size to {max(1, size // world)} or less."
        )
    return steps


def evaluation_batches(share: Sequence[int], batch_size: int, largest: int) -> list[list[int]]:
    """The batches of a rank: each row of its share exactly once, none repeated to fill a batch.

    A rank whose share ends a batch before the largest share does splits its last batch, because
    DDP hangs if ranks call the network unequally often (a batch of one cannot be split).
    """
    batches = [list(share[i : i + batch_size]) for i in range(0, len(share), batch_size)]
    if batches and len(batches) < math.ceil(largest / batch_size) and len(batches[-1]) > 1:
        last = batches.pop()
        batches += [last[: len(last) // 2], last[len(last) // 2 :]]
    return batches


def strided(rows: Sequence[int], batch_size: int, rank: int, world: int) -> list[list[int]]:
    """Batches of every world-th row, which gives each rank all classes of a sorted set."""
    return evaluation_batches(rows[rank::world], batch_size, math.ceil(len(rows) / world))


def contiguous(size: int, batch_size: int, rank: int, world: int) -> list[list[int]]:
    """Batches of a contiguous part of the rows, for what is read in order."""
    share = range(size * rank // world, size * (rank + 1) // world)
    return evaluation_batches(share, batch_size, math.ceil(size / world))


def spread(size: int, limit: int | None) -> list[int]:
    """At most `limit` places, evenly spread, so that a split sorted by class keeps its classes."""
    if limit is None or limit >= size:
        return list(range(size))
    return [i * size // limit for i in range(limit)]


class Training(Dataset[Sample]):
    """Maps (epoch, place) to an augmented sample, the same in every process."""

    def __init__(self, split: Split, augment: Augment | None, seed: int) -> None:
        self.split, self.augment, self.seed = split, augment, seed

    def __getitem__(self, key: Key) -> Sample:
        """The sample of this epoch."""
        epoch, index = key
        if self.augment is None:
            return self.split[index]
        rng = np.random.default_rng([self.seed, AUGMENT, epoch, index])
        return self.split.read(index, partial(self.augment, rng=rng))

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """A batch of them; PyTorch's loader asks for this."""
        if self.augment is None:
            return self.split.__getitems__([index for _, index in keys])
        return collate([self[key] for key in keys])


class TrainingLoader:
    """Batches of an epoch; without a trainer, each pass over it is the next epoch.

    Lightning takes it as it is and puts no distributed sampler into it. The trainer's count of
    batches is asked when the first batch is due, since only then does a resumed trainer know it;
    so a batch that a signal interrupted comes again.

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
        split: Split,
        batch_size: int,
        trainer: Trainer | None = None,
        num_workers: int = 0,
        limit: int | None = None,
    ) -> None:
        self.split, self.num_workers = split, num_workers
        rows = spread(len(split), limit)
        self.batches = strided(rows, batch_size, *place(trainer))

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        yield from load(self.split, self.batches, self.num_workers)


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
        worker_init_fn=ignore_requeue_signal,
        # Otherwise making an iterator draws from the global generator, and a resumed run differs.
        generator=torch.Generator(),
    )
    try:
        yield from loader
    except DataError as error:
        raise error.plain() from None


def as_it_is(batch: Any) -> Any:
    """The batch."""
    return batch


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
