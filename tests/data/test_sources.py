"""Digits and Fashion-MNIST: values, labels, fixed splits, and what is said of bad files."""

import gzip
import hashlib
import struct

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from robustguide.data import DataError, Digits, FashionMNIST
from robustguide.data.sources import DEBIAN_FASHION_MNIST
from robustguide.data.splits import SPLITS, chance, hold_out


def rows_of(source):
    return {name: list(source.split(name).rows) for name in SPLITS}


def test_digits_split_once_and_for_all():
    rows = rows_of(Digits())
    assert sorted(row for split in rows.values() for row in split) == list(range(1797))
    text = repr([rows[name] for name in SPLITS]).encode()
    assert hashlib.sha256(text).hexdigest()[:16] == "acbab87f62f9481a"
    labels = load_digits().target
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    for name, fraction in zip(SPLITS, (0.7, 0.1, 0.2), strict=True):
        share = np.bincount(labels[rows[name]]) / np.bincount(labels)
        np.testing.assert_allclose(share, fraction, atol=0.006)
    assert rows_of(Digits(seed=1)) != rows


def test_folds_are_disjoint_parts_of_the_training_split():
    folds = [rows_of(Digits(fold=(i, 3))) for i in range(3)]
    whole = rows_of(Digits())
    assert sorted(row for fold in folds for row in fold["train"]) == whole["train"]
    assert all(fold["test"] == whole["test"] for fold in folds)
    counts = [np.bincount(load_digits().target[fold["train"]]) for fold in folds]
    assert np.abs(counts[0] - counts[1]).max() <= 2


def test_digits_are_the_sixteen_levels_on_minus_one_to_one():
    split, digits = Digits().split("train"), load_digits()
    for index in (0, 7, 1000):
        x_0, y, place = split[index]
        expected = torch.from_numpy(digits.images[split.rows[index]] / 8 - 1).float()[None]
        assert x_0.dtype == torch.float32 and torch.equal(x_0, expected)
        assert (y, place) == (digits.target[split.rows[index]], index)
    batch = split.__getitems__(list(range(len(split))))
    assert batch[0].aminmax() == (-1, 1)
    for i in range(9):
        x_0, y, place = split[i]
        assert torch.equal(batch[0][i], x_0) and (batch[1][i], batch[2][i]) == (y, place)


def test_label_outside_the_classes_is_named():
    split = Digits().split("train")
    split.labels = [*split.labels]
    split.labels[split.rows[5]] = 10
    for read in (lambda: split[5], lambda: split.__getitems__([4, 5])):
        with pytest.raises(DataError, match=rf"row {split.rows[5]} of .*digits is 10.*0\.\.9"):
            read()


def test_unknown_split():
    with pytest.raises(ValueError, match="'val'; expected one of train, validation, test"):
        Digits().split("val")


def test_hash_is_fixed():
    assert chance("a.png") == pytest.approx(0.227153282315, abs=1e-12)
    assert 0.45 < np.mean([chance(key) for key in range(1000)]) < 0.55


def test_hold_out_takes_the_same_fraction_of_each_class():
    labels = [0] * 40 + [1] * 20 + [2] * 10
    kept, held = hold_out(range(70), labels, 0.1)
    assert sorted(kept + held) == list(range(70))
    assert [labels[row] for row in held] == [0] * 4 + [1] * 2 + [2]


def write_fashion_mnist(folder, compress=True):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 200), ("t10k", 30)):
        images = rng.integers(256, size=(count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape)
            data = head + array.tobytes()
            end = ".gz" if compress else ""
            data = gzip.compress(data) if compress else data
            (folder / f"{prefix}-{name}-ubyte{end}").write_bytes(data)
    return images


@pytest.mark.parametrize("below, compress", [(".", True), ("FashionMNIST/raw", False)])
def test_fashion_mnist_is_read_from_its_files(tmp_path, below, compress):
    last = write_fashion_mnist(tmp_path / "root" / below, compress)
    source = FashionMNIST(str(tmp_path / "root"), size=32)
    sizes = {name: len(source.split(name)) for name in SPLITS}
    assert sizes == {"train": 180, "validation": 20, "test": 30}
    x_0, y, index = source.split("test")[29]
    assert x_0.shape == source.shape == (1, 32, 32) and (y, index) == (9, 29)
    inside = torch.from_numpy(last[29].astype(np.float32) / 127.5 - 1)
    assert torch.equal(x_0[0, 2:-2, 2:-2], inside)
    assert (x_0[0, :2] == -1).all() and (x_0[0, :, -2:] == -1).all()


def test_fashion_mnist_for_networks_of_colour_images(tmp_path):
    write_fashion_mnist(tmp_path / "root")
    grey, colour = (
        FashionMNIST(str(tmp_path / "root"), size=32, channels=channels).split("test")
        for channels in (1, 3)
    )
    x_0, y, index = colour.__getitems__([29, 3])
    want, *same = grey.__getitems__([29, 3])
    assert x_0.shape == (2, 3, 32, 32) and x_0.is_contiguous()
    assert torch.equal(x_0, want.expand(-1, 3, -1, -1))
    assert torch.equal(y, same[0]) and torch.equal(index, same[1])
    assert torch.equal(colour[29][0], x_0[0])  # one by one, through Pillow
    with pytest.raises(ValueError, match="channels is 2; expected 1, or 3"):
        FashionMNIST(channels=2)


def test_fashion_mnist_that_is_cut(tmp_path):
    write_fashion_mnist(tmp_path / "root")
    path = tmp_path / "root" / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"Cannot read .*t10k-labels.*Fetch the file again"):
        FashionMNIST(str(tmp_path / "root")).split("test")


def test_fashion_mnist_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr("robustguide.data.sources.DEBIAN_FASHION_MNIST", tmp_path / "debian")
    with pytest.raises(DataError, match=rf"in none of {tmp_path}/a, .*debian.*Install Debian's"):
        FashionMNIST(str(tmp_path / "a")).split("test")


@pytest.mark.skipif(not DEBIAN_FASHION_MNIST.is_dir(), reason="dataset-fashion-mnist is not here")
def test_the_real_fashion_mnist():
    source = FashionMNIST()
    train, test = source.split("train"), source.split("test")
    assert len(train) == 54000 and len(test) == 10000
    counts = np.bincount([train.labels[row] for row in train.rows])
    assert counts.tolist() == 10 * [5400]
    assert [source.class_names[test[i][1]] for i in range(3)] == [
        "Ankle boot",
        "Pullover",
        "Trouser",
    ]
