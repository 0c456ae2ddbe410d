"""Numbers and labels of the images to generate."""

import pytest
import torch
from lightning import Trainer

from robustguide.data import Balanced, Digits, Labels, Listed, Random, SeedData


class Process(Trainer):
    """One of several processes that evaluate."""

    global_rank = world_size = 0  # in place of the trainer's properties

    def __init__(self, rank, world):
        self.global_rank, self.world_size = rank, world


def pairs(data):
    """Number -> label, over all batches."""
    batches = list(data.test_dataloader())
    assert all(index.dtype == y.dtype == torch.int64 for index, y in batches)
    index, y = (torch.cat(part).tolist() for part in zip(*batches, strict=True))
    assert len(set(index)) == len(index)
    return dict(zip(index, y, strict=True))


def test_classes_are_balanced_by_default():
    data = SeedData(25, num_classes=10)
    assert pairs(data) == {i: i % 10 for i in range(25)}
    assert data.class_names == [str(i) for i in range(10)] and data.num_classes == 10
    assert [len(y) for _, y in SeedData(25, 10, batch_size=10).predict_dataloader()] == [10, 10, 5]


@pytest.mark.parametrize("labels", [Balanced(), Random(), Listed([3, 1, 4, 1, 5])])
def test_labels_depend_on_the_number_alone(labels):
    whole = pairs(SeedData(40, 10, labels=labels))
    parts = pairs(SeedData(13, 10, batch_size=1, labels=labels))
    parts |= pairs(SeedData(27, 10, first=13, batch_size=4, labels=labels))
    assert parts == whole


def test_random_labels_are_uniform_and_seeded():
    first = pairs(SeedData(5000, 10, labels=Random(1)))
    counts = torch.bincount(torch.tensor(list(first.values())))
    assert ((counts - 500) ** 2 / 500).sum() < 27.9  # chi-squared, 9 degrees: once in 1000
    assert first != pairs(SeedData(5000, 10, labels=Random(2)))


def test_listed_labels_repeat_and_are_checked():
    assert list(pairs(SeedData(5, 4, labels=Listed([3, 0]))).values()) == [3, 0, 3, 0, 3]
    with pytest.raises(ValueError, match=r"Label 4 at position 1 .* 0\.\.3"):
        SeedData(5, 4, labels=Listed([3, 4]))


class Null(Labels):
    """The null label for every third image."""

    def label(self, index, num_classes):
        return num_classes if index % 3 == 2 else 0


def test_labels_of_any_rule_are_checked():
    assert pairs(SeedData(2, 4, labels=Null())) == {0: 0, 1: 0}
    with pytest.raises(ValueError, match=r"Null gives label 4; .* 0\.\.3"):
        SeedData(3, 4, labels=Null())


def test_processes_take_disjoint_numbers():
    seen = {}
    for rank in range(2):
        data = SeedData(11, 10, first=5, batch_size=3)
        data.trainer = Process(rank, 2)
        mine = pairs(data)
        assert not seen.keys() & mine.keys() and len(data.test_dataloader()) == 2
        seen |= mine
    assert seen == {i: i % 10 for i in range(5, 16)}


def test_every_epoch_has_all_the_numbers():
    """And as many batches in every process, which wait for each other at each one."""
    data = SeedData(11, 10, first=5, batch_size=4)
    epochs = [[index.tolist() for index, _ in data.train_dataloader()] for _ in range(2)]
    assert epochs[0] == epochs[1] == [[5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15]]
    batches, found = [], []
    for rank in range(2):
        data.trainer = Process(rank, 2)
        loader = data.train_dataloader()
        batches.append(len(loader))
        found += [number for index, _ in loader for number in index.tolist()]
    assert batches == [2, 2] and sorted(found) == list(range(5, 16))
    single = SeedData(11, 10, batch_size=1)
    assert len(single.train_dataloader()) == 11
    single.trainer = Process(0, 2)
    with pytest.raises(ValueError, match="11 numbers cannot be shared evenly by 2 processes"):
        single.train_dataloader()


def test_reference_images():
    data = SeedData(5, 10, reference=Digits())
    assert len(data.reference) == 1259 and data.reference[0][0].shape == (1, 8, 8)
    assert SeedData(5, 10).reference is None
    with pytest.raises(ValueError, match="reference images have 10 classes, num_classes is 4"):
        SeedData(5, 4, reference=Digits())


@pytest.mark.parametrize(
    "options", [{"count": 0}, {"first": -1}, {"batch_size": 0}, {"class_names": ["a"]}]
)
def test_settings_are_refused(options):
    with pytest.raises(ValueError, match=r"expected|begin"):
        SeedData(**({"count": 5, "num_classes": 10} | options))
