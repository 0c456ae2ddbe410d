"""Shards against their manifest: each one that differs is named."""

import io
import json
import tarfile

import latent
import numpy as np
import photographs
import pytest

from robustguide.data import DataError, Folder, LatentWriter, ShardImages, write_shards
from robustguide.data.verify import faults


@pytest.fixture
def shards(tmp_path):
    photos = photographs.folder(tmp_path / "photos", {"train": 6, "val": 2, "test": 8})
    write_shards(Folder(str(photos), 8, 1), str(tmp_path / "shards"), per_shard=4)
    return tmp_path / "shards"


def change(root, split, **values):
    path = root / "manifest.json"
    plain = json.loads(path.read_text())
    plain["shards"][split][0].update(values)
    path.write_text(json.dumps(plain))


@pytest.mark.parametrize("num_workers", [0, 3])
def test_whole_shards_have_no_faults(shards, num_workers):
    told = []
    assert list(faults(str(shards), num_workers, told.append)) == []
    assert sum(told) == 32


def test_all_that_differ_are_named(shards):
    test = [shards / f"test-{number:06d}.tar" for number in range(4)]
    content = bytearray(test[0].read_bytes())
    content[600] ^= 1
    test[0].write_bytes(content)
    test[1].write_bytes(test[1].read_bytes()[:-512])
    test[2].unlink()
    (shards / "test-000009.tar").write_bytes(test[3].read_bytes())
    change(shards, "train", count=7)
    found = dict(fault.split(": ", 1) for fault in faults(str(shards)))
    assert found["test-000000.tar"].startswith("has the checksum ")
    assert " bytes; the manifest says " in found["test-000001.tar"]
    assert found == found | {
        "test-000002.tar": "is missing",
        "test-000009.tar": "is not in the manifest",
        "train-000000.tar": "holds 4 samples; the manifest says 7",
    }
    assert len(found) == 5


def test_counts_alone_where_no_checksum_is_known(shards):
    for split in ("train", "test"):
        change(shards, split, sha256=None, size=None)
    change(shards, "test", count=9)
    (shards / "train-000000.tar").write_bytes(b"no tar file")
    first, second = faults(str(shards))
    assert first.startswith("train-000000.tar: cannot be read: ")
    assert second == "test-000000.tar: holds 4 samples; the manifest says 9"


def test_latents_and_nothing_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"There is no manifest\.json"):
        list(faults(str(tmp_path)))
    photos = photographs.folder(tmp_path / "photos", {"train": 4, "val": 1, "test": 1})
    LatentWriter(latent.codec()).write(Folder(str(photos), 8, 1), str(tmp_path))
    with pytest.raises(DataError, match="holds latents"):
        list(faults(str(tmp_path)))


@pytest.mark.parametrize("content", [b"no array", b"", "int32", "shape"])
def test_a_raw_image_that_is_none(shards, content):
    if isinstance(content, str):
        file = io.BytesIO()
        np.save(file, np.zeros((2, 3, 4, 4), np.int32 if content == "int32" else np.uint8))
        content = file.getvalue()
    with tarfile.open(shards / "validation-000000.tar", "w") as tar:
        for key in range(4):
            for suffix, value in (("npy", content), ("cls", b"0")):
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(value)
                tar.addfile(member, io.BytesIO(value))
    with pytest.raises(DataError, match=r"Cannot read the image 0 in .*expected uint8 of shape"):
        list(ShardImages(str(shards)).val_dataloader())
