"""Which samples are in which batch, as pure functions.

Training goes through the permutation of epoch 0, then that of epoch 1, and so on; each rank
takes every world-th sample and what does not fill a batch on every rank is left out of the epoch.
Batch number k of a rank is a function of (seed, k, rank, world) alone, so a run that was stopped
anywhere resumes at batch k as if it had not been.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import count

import numpy as np

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
