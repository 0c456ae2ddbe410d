"""Data sets of torchvision, from files written here."""

import pickle

import numpy as np
import pytest
import torchvision
from PIL import Image

from robustguide.data import DataError, Torchvision
from robustguide.data.splits import SPLITS


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """CIFAR-10 in its own format, with 20 training and 10 test images in a file."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    files = [f"data_batch_{i}" for i in range(1, 6)]
    for file in [*files, "test_batch"]:
        count = 10 if file == "test_batch" else 20
        pixels = rng.integers(256, size=(count, 3072), dtype=np.uint8)
        entry = {"data": pixels, "labels": [i % 10 for i in range(count)]}
        (folder / file).write_bytes(pickle.dumps(entry))
    names = [f"class {i}" for i in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    return pixels


def test_cifar(tmp_path, cifar):
    source = Torchvision("CIFAR10", str(tmp_path))
    assert source.shape == (3, 32, 32)
    assert source.class_names == [f"class {i}" for i in range(10)]
    sizes = {name: len(source.split(name)) for name in SPLITS}
    assert sizes == {"train": 90, "validation": 10, "test": 10}
    assert [source.split("validation")[i][1] for i in range(10)] != 10 * [0]
    train, validation = source.split("train").rows, source.split("validation").rows
    assert sorted([*train, *validation]) == list(range(100))
    x_0, y, index = source.split("test")[3]
    expected = cifar[3].reshape(3, 32, 32).astype(np.float32) / 127.5 - 1
    np.testing.assert_array_equal(x_0.numpy(), expected)
    assert (y, index) == (3, 3)


def test_labels_outside_the_classes_are_named(tmp_path, cifar):
    source = Torchvision("CIFAR10", str(tmp_path), class_names=["one", "two"])
    with pytest.raises(DataError, match=r"row 7 of CIFAR10 is 7; with 2 classes .* 0\.\.1"):
        source.split("test")[7]


def test_missing_files_name_the_folder_and_the_repair(tmp_path):
    with pytest.raises(
        DataError, match=rf"CIFAR10 \(train\) is not in {tmp_path}.*download: true"
    ):
        Torchvision("CIFAR10", str(tmp_path)).split("train")
    with pytest.raises(DataError, match=rf"ImageNet \(val\) is not in {tmp_path}"):
        Torchvision("ImageNet", str(tmp_path), size=64).split("test")


class Named(torchvision.datasets.VisionDataset):
    """Has train, val and test, and images of several sizes."""

    classes = ("red", "blue")

    def __init__(self, root, split="train"):
        super().__init__(root)
        if split not in ("train", "val", "test"):
            raise ValueError(split)
        self.split_name = split

    def __len__(self):
        return {"train": 30, "val": 4, "test": 6}[self.split_name]

    def __getitem__(self, index):
        return Image.new("RGB", (20 + index, 20), ("red", "blue")[index % 2]), index % 2


def test_own_validation_split_and_size(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "Named", Named, raising=False)
    source = Torchvision("Named", str(tmp_path), size=16)
    sizes = {name: len(source.split(name)) for name in SPLITS}
    assert sizes == {"train": 30, "validation": 4, "test": 6}
    x_0, y, _ = source.split("validation")[3]
    assert x_0.shape == (3, 16, 16) and y == 1
    assert (x_0[2] == 1).all() and (x_0[:2] == -1).all()
    with pytest.raises(DataError, match=r"row 2 of Named has 22 x 20 pixels.*state a size"):
        Torchvision("Named", str(tmp_path)).split("test")[2]


@pytest.mark.parametrize("name", ["CIFAR11", "folder", "VisionDataset"])
def test_unknown_data_set(name):
    with pytest.raises(ValueError, match=f"no data set '{name}'.*such as CIFAR10"):
        Torchvision(name, ".")


def test_imagenet_cannot_be_fetched():
    with pytest.raises(ValueError, match="cannot download ImageNet; put its files"):
        Torchvision("ImageNet", ".", download=True)
