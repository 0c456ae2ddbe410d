"""Shards: round trip, each evaluation sample once, training steps, and bad files."""

import json
import os
import tarfile

import numpy as np
import pytest
import torch
from lightning import Trainer

from robustguide.data import (
    CropAndFlip,
    DataError,
    Digits,
    ShardImages,
    index_shards,
    write_shards,
)
from robustguide.data.images import ImageSource, Rows
from robustguide.data.manifest import under_temporary_name
from robustguide.data.splits import SPLITS


class Small(ImageSource):
    """Images whose pixels all state their row."""

    sizes = (60, 23, 31)

    def __init__(self):
        self.class_names, self.shape = ["even", "odd"], (1, 4, 4)

    def open(self, name):
        begin = sum(self.sizes[: SPLITS.index(name)])
        rows = range(begin, begin + self.sizes[SPLITS.index(name)])
        images = np.repeat(np.arange(sum(self.sizes), dtype=np.uint8), 16).reshape(-1, 4, 4)
        return Rows(images, [i % 2 for i in range(len(images))], rows, "small", 2)


class Process(Trainer):
    """One of several processes that evaluate."""

    global_rank = world_size = 0  # in place of the trainer's properties

    def __init__(self, rank, world):
        self.global_rank, self.world_size = rank, world


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_shards(Small(), str(folder), per_shard=8)
    return folder


def rows_of(x_0):
    return ((x_0[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


def test_round_trip_and_manifest(shards):
    files = sorted(path.name for path in shards.iterdir())
    numbers = {"test": 4, "train": 8, "validation": 3}
    tars = [f"{name}-{i:06d}.tar" for name, count in numbers.items() for i in range(count)]
    assert files == sorted(["manifest.json", *tars])
    plain = json.loads((shards / "manifest.json").read_text())
    assert plain["num_classes"] == 2 and plain["class_names"] == ["even", "odd"]
    assert plain["shape"] == [1, 4, 4] and plain["recipe"] == "Small, 8-bit PNG"
    assert plain["counts"] == {"train": 60, "validation": 23, "test": 31}
    assert [entry["count"] for entry in plain["shards"]["test"]] == [8, 8, 8, 7]
    data = ShardImages(str(shards), eval_batch_size=10)
    assert (data.num_classes, data.class_names, data.shape) == (2, ["even", "odd"], (1, 4, 4))
    batches = list(data.test_dataloader())
    assert len(batches) == len(data.test_dataloader()) == 4
    split = Small().split("test")
    for x_0, y, index in batches:
        expected = split.__getitems__(index.tolist())
        assert torch.equal(x_0, expected[0]) and torch.equal(y, expected[1])


@pytest.mark.filterwarnings("ignore:num_workers is .* but a process has .* shards:UserWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes:UserWarning")
@pytest.mark.parametrize("num_workers, world", [(0, 1), (1, 1), (2, 1), (4, 1), (2, 2), (0, 5)])
def test_evaluation_hands_out_each_sample_once(shards, num_workers, world):
    seen, lengths = [], set()
    for rank in range(world):
        data = ShardImages(str(shards), eval_batch_size=3, num_workers=num_workers)
        data.trainer = Process(rank, world)
        batches = list(data.test_dataloader())
        assert len(batches) == len(data.test_dataloader())
        lengths.add(len(batches))
        for x_0, y, index in batches:
            assert rows_of(x_0) == (index + 83).tolist()
            assert y.tolist() == ((index + 83) % 2).tolist()
            seen += index.tolist()
    assert sorted(seen) == list(range(31)) and len(lengths) == 1


def test_workers_are_capped_and_told(shards):
    data = ShardImages(str(shards), num_workers=9)
    with pytest.warns(UserWarning, match="num_workers is 9, but a process has 4 test shards"):
        assert data.test_dataloader().num_workers == 4


@pytest.mark.parametrize("num_workers, count", [(0, 6), (2, 2)])
def test_training_has_its_steps_and_uses_all_images(shards, num_workers, count):
    def passes(seed):
        options = {"batch_size": 8, "num_workers": num_workers, "buffer": 20}
        loader = ShardImages(str(shards), seed=seed, **options).train_dataloader()
        assert len(loader) == 7
        return [[rows_of(x_0) for x_0, *_ in loader] for _ in range(count)]

    epochs = passes(0)
    assert all(len(epoch) == 7 and all(len(batch) == 8 for batch in epoch) for epoch in epochs)
    assert epochs[0] != epochs[1]
    rows = {row for epoch in epochs for batch in epoch for row in batch}
    assert rows <= set(range(60)) and len(rows) >= {2: 40, 6: 54}[count]
    assert passes(0) == epochs != passes(1)


def test_training_augments(shards):
    loader = ShardImages(str(shards), 8, augment=CropAndFlip(), size=2).train_dataloader()
    x_0, y, index = next(iter(loader))
    assert x_0.shape == (8, 1, 2, 2) and index.tolist() == 8 * [-1]
    assert [row % 2 for row in rows_of(x_0)] == y.tolist()


def test_digits_are_rounded_to_eight_bits(tmp_path):
    write_shards(Digits(fold=(0, 40)), str(tmp_path))
    x_0, y, index = next(iter(ShardImages(str(tmp_path), eval_batch_size=50).test_dataloader()))
    expected = Digits().split("test").__getitems__(index.tolist())
    torch.testing.assert_close(x_0, expected[0], rtol=0, atol=0.5 / 127.5 + 1e-6)
    assert torch.equal(y, expected[1])


def test_shards_made_elsewhere_are_counted(shards, tmp_path):
    for path in shards.glob("*.tar"):
        name = path.name.replace("test", "imagenet-val")
        if not name.startswith("validation"):
            (tmp_path / name).write_bytes(path.read_bytes())
    with pytest.raises(DataError, match=r"no manifest.json in .*index_shards"):
        ShardImages(str(tmp_path))
    manifest = index_shards(str(tmp_path), ["even", "odd"], size=4, channels=1)
    assert {name: manifest.count(name) for name in SPLITS} == {
        "train": 60,
        "validation": 0,
        "test": 31,
    }
    data = ShardImages(str(tmp_path), eval_batch_size=40)
    assert rows_of(next(iter(data.test_dataloader()))[0]) == list(range(83, 114))
    with pytest.raises(DataError, match="no validation shards"):
        data.val_dataloader()


def copy(shards, folder):
    for path in shards.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder / "test-000001.tar"


@pytest.mark.parametrize("count, word", [(6, "more"), (8, "fewer")])
def test_count_that_differs_from_the_manifest(shards, tmp_path, count, word):
    copy(shards, tmp_path)
    plain = json.loads((tmp_path / "manifest.json").read_text())
    plain["shards"]["test"][3]["count"] = count
    (tmp_path / "manifest.json").write_text(json.dumps(plain))
    message = rf"test-000003.tar holds {word} samples than the {count} in the manifest"
    with pytest.raises(DataError, match=message):
        list(ShardImages(str(tmp_path), eval_batch_size=5, retries=0).test_dataloader())


@pytest.mark.parametrize(
    "entry, message",
    [
        ({"png": b"\x89PNG broken", "cls": b"0"}, r"Cannot read the image 7 in .*test-000001.tar"),
        ({"cls": b"0"}, r"7 in .*test-000001.tar has no image"),
        ({"png": None}, r"7 in .*test-000001.tar has no label"),
        ({"png": None, "cls": b"cat"}, r"label of 7 in .*test-000001.tar is b'cat'"),
        ({"png": None, "cls": b"2"}, r"label of 7 in .* is 2; with 2 classes"),
    ],
)
@pytest.mark.parametrize("num_workers", [0, 1])
def test_bad_samples_are_named(shards, tmp_path, entry, message, num_workers):
    path = copy(shards, tmp_path)
    with tarfile.open(path) as tar:
        png = tar.extractfile(next(name for name in tar.getnames() if name.endswith("png"))).read()
    with tarfile.open(path, "w") as tar:
        file, good = tmp_path / "value", {"png": png, "cls": b"0"}
        for key in range(7, 15):
            for suffix, value in (entry if key == 7 else good).items():
                file.write_bytes(png if value is None else value)
                tar.add(file, f"{key}.{suffix}")
    data = ShardImages(str(tmp_path), eval_batch_size=10, num_workers=num_workers)
    with pytest.raises(DataError, match=message) as error:
        list(data.test_dataloader())
    assert "Traceback" not in str(error.value)


def test_missing_shard_and_bad_manifest(shards, tmp_path):
    copy(shards, tmp_path).unlink()
    with pytest.raises(DataError, match=r"shard .*test-000001.tar of .* is missing"):
        ShardImages(str(tmp_path))
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match=r"Cannot read .*manifest.json: KeyError\('shape'\)"):
        ShardImages(str(tmp_path))


def test_cut_shard_is_named(shards, tmp_path):
    path = copy(shards, tmp_path)
    path.write_bytes(path.read_bytes()[:800])
    with pytest.raises(DataError, match=r"Cannot read the shard .*test-000001.tar: .* Make it"):
        list(ShardImages(str(tmp_path), eval_batch_size=10, retries=0).test_dataloader())


def test_a_folder_of_shards_is_not_overwritten(shards):
    with pytest.raises(ValueError, match="already holds shards"):
        write_shards(Small(), str(shards))


def test_full_disk_leaves_no_file(tmp_path):
    with pytest.raises(OSError, match=r"Cannot write \(No space left on device\).*a\.tar"):
        with under_temporary_name(tmp_path / "a.tar") as file:
            file.write(b"half")
            raise OSError(28, os.strerror(28))
    assert not list(tmp_path.iterdir())
