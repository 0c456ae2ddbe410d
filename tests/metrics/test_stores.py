import math
import multiprocessing
import os
import subprocess
import sys

import pytest
import torch

from robustguide.metrics.stores import FeatureStore
from robustguide.metrics.tables import Filed

FORK = multiprocessing.get_context("fork")  # so that nothing is imported twice
pytestmark = pytest.mark.filterwarnings("ignore:.*fork")


def layers_of(index):
    """Features that tell whose they are, of two layers."""
    rows = index.float()[:, None]
    return {"pool3": rows + torch.arange(3) / 8, "logits": -rows.expand(-1, 2)}


def filled(folder, *batches, labels=True):
    store = FeatureStore(folder)
    for batch in batches:
        index = torch.tensor(batch, dtype=torch.long)
        store.add(index, layers_of(index), index % 5 if labels else None)
    return store


def check(stored, numbers):
    """Each of these once, in order, in both layers."""
    index = torch.tensor(numbers)
    assert torch.equal(stored.index, index)
    assert torch.equal(stored.y, index % 5)
    for layer, expected in layers_of(index).items():
        table = stored.layers[layer]
        assert isinstance(table, Filed) and (table.rows, table.dim) == expected.shape
        assert torch.equal(table.block(0, len(index)), expected)


@pytest.mark.parametrize(
    "batches",
    [
        [[0, 1, 2, 3, 4, 5, 6]],
        [[5, 6], [0, 1], [2, 3], [4]],
        [[0, 2, 4, 6], [1, 3, 5]],  # two processes
        [[0, 2], [4, 6], [1, 3], [5]],  # with uneven last batches
        [[6, 0, 3], [5], [1, 4, 2]],
        [[0, 1, 2, 3], [2, 3, 4, 5, 6], [6]],  # some of them twice
        [[0, 1, 2, 3], [0, 1, 2, 3], [4, 5, 6], []],  # a batch again
    ],
)
def test_features_are_in_the_order_of_the_images(tmp_path, batches):
    store = filled(tmp_path / "store", *batches)
    check(store.finish(), list(range(7)))
    check(store.finish(), list(range(7)))  # the same again
    assert store.marks() == dict.fromkeys(range(7), 0)
    raw = torch.frombuffer(
        bytearray((tmp_path / "store/pool3.float32").read_bytes()), dtype=torch.float32
    )
    assert torch.equal(raw.reshape(7, 3), layers_of(torch.arange(7))["pool3"])


def test_a_batch_that_came_twice_is_one_file(tmp_path):
    filled(tmp_path, [4, 9], [4, 9], [9, 4])
    assert len(list(tmp_path.glob("chunk_*"))) == 2  # the last one is in another order
    assert not list(tmp_path.glob(".*"))


def test_images_are_known_again_by_their_marks(tmp_path):
    """Of an image that came twice, by that of the chunk whose features count."""
    store = FeatureStore(tmp_path)
    for numbers, mark in (([2, 3], 7), ([3, 4], -1)):
        index = torch.tensor(numbers)
        store.add(index, layers_of(index), marks=torch.full((2,), mark))
    assert store.marks() == {2: 7, 3: 7, 4: -1}


def test_numbers_need_not_begin_at_0(tmp_path):
    check(filled(tmp_path, [10**11, 7], [50_000]).finish(), [7, 50_000, 10**11])


def share(folder, rank):
    """What one of two processes adds: every other image, with an uneven last batch."""
    torch.set_num_threads(1)
    for index in torch.arange(23)[rank::2].split(4):
        FeatureStore(folder).add(index, layers_of(index), index % 5)


def test_processes_write_into_one_folder(tmp_path):
    both = [FORK.Process(target=share, args=(tmp_path, rank)) for rank in (0, 1)]
    for process in both:
        process.start()
    for process in both:
        process.join(300)
    assert [process.exitcode for process in both] == [0, 0]
    check(FeatureStore(tmp_path).finish(), list(range(23)))


def test_labels_may_be_missing(tmp_path):
    stored = filled(tmp_path, [1], [0], labels=False).finish()
    assert stored.y is None and torch.equal(stored.index, torch.tensor([0, 1]))


def test_numbers_of_any_kind_become_float32(tmp_path):
    store = FeatureStore(tmp_path)
    wide = torch.tensor([[math.pi, 1e-3]], dtype=torch.float64)
    store.add(torch.tensor([0], dtype=torch.int32), {"a": wide.requires_grad_()})
    assert torch.equal(store.finish().layers["a"].block(0, 1), wide.detach().float())


def test_what_does_not_belong_together_is_refused(tmp_path):
    store = FeatureStore(tmp_path)
    with pytest.raises(ValueError, match=r"holds no features; add those of one image"):
        store.finish()
    with pytest.raises(ValueError, match=r"features of \{'a': 2\} images for 3 numbers"):
        store.add(torch.arange(3), {"a": torch.zeros(2, 4)})
    store.add(torch.arange(3), {"a": torch.zeros(3, 4)})
    store.add(torch.arange(3, 5), {"a": torch.zeros(2, 5)})
    with pytest.raises(ValueError, match=r"are of different runs; delete"):
        store.finish()
    store.clear()
    assert not tmp_path.exists()
    store.clear()  # twice is once


def test_memory_is_that_of_a_chunk(tmp_path):
    """As much for ten times the images, whose features are 82 MB; in a process of its own."""
    code = (
        "import resource, sys, torch; from robustguide.metrics.stores import FeatureStore\n"
        "torch.set_num_threads(1)\n"
        "for count in (1000, 10_000):\n"
        "    store = FeatureStore(f'{sys.argv[1]}/{count}')\n"
        "    for index in torch.arange(count).split(100):\n"
        "        store.add(index, {'a': torch.rand(len(index), 2048)})\n"
        "    assert store.finish().layers['a'].rows == count\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)\n"
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=True)
    first, second = map(int, done.stdout.split())
    assert second - first < 8 * 2**20
