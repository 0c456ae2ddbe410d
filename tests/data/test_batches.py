"""Which samples are in which batch: ranks, epochs, limits."""

import numpy as np
import pytest

from robustguide.data.batches import contiguous, spread, strided, training_batches


@pytest.mark.parametrize("size, batch_size, world", [(103, 10, 1), (103, 10, 2), (103, 7, 4)])
def test_ranks_train_on_disjoint_images(size, batch_size, world):
    steps = size // world // batch_size
    ranks = [training_batches(size, batch_size, 0, rank, world) for rank in range(world)]
    for epoch in range(2):
        keys = [key for rank in ranks for _ in range(steps) for key in next(rank)]
        assert {e for e, _ in keys} == {epoch}
        assert len({row for _, row in keys}) == steps * batch_size * world


@pytest.mark.parametrize("deal", [lambda n, *rest: strided(range(n), *rest), contiguous])
@pytest.mark.parametrize("size", [1, 2, 5, 16, 17, 24, 25, 31])
@pytest.mark.parametrize("batch_size", [2, 4, 8])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_ranks_evaluate_each_image_once_in_equally_many_batches(deal, size, batch_size, world):
    ranks = [deal(size, batch_size, rank, world) for rank in range(world)]
    rows = [row for batches in ranks for batch in batches for row in batch]
    assert sorted(rows) == list(range(size))
    assert all(1 <= len(batch) <= batch_size for batches in ranks for batch in batches)
    if size >= world:
        assert len({len(batches) for batches in ranks}) == 1


def test_a_limit_keeps_the_classes_of_a_sorted_split():
    labels = np.repeat(np.arange(10), 50)
    assert np.bincount(labels[spread(500, 20)]).tolist() == 10 * [2]
    assert spread(500, 500) == spread(500, None) == list(range(500))
