import pytest
import sampled
import torch

from robustguide.data import DataError, Digits, Manifest, write_shards
from robustguide.data.generated import Real, RealShards, open_samples, write_samples
from robustguide.interfaces import to_pixels

SOURCE = Digits(fold=(0, 20))


def test_images_of_a_source_are_bytes():
    real, split = Real(SOURCE, "test"), SOURCE.split("test")
    found = sampled.together(real, 100)
    x_0, y, index = split.__getitems__(range(len(split)))
    assert real.count == 359 and real.shape == (1, 8, 8) and real.made == {"kind": "real"}
    assert torch.equal(found.pixels, to_pixels(x_0)) and torch.equal(found.y, y)
    assert torch.equal(found.index, index) and torch.equal(found.seed, index)
    # digits have the values 0 to 16, which 255/16 spreads over the bytes
    assert found.pixels.unique().tolist() == [round(255 / 16 * value) for value in range(17)]


def test_shards_and_files_hold_the_same_images(tmp_path):
    write_shards(SOURCE, str(tmp_path / "shards"))
    of_shards = RealShards(Manifest.read(tmp_path / "shards"), "test")
    write_samples(Real(SOURCE, "test"), tmp_path / "a.npz")
    sampled.assert_same(of_shards, Real(SOURCE, "test"))
    sampled.assert_same(open_samples(tmp_path / "a.npz"), Real(SOURCE, "test"))
    assert of_shards.digest(7) == Real(SOURCE, "test").digest()


def test_a_split_that_is_not_there(tmp_path):
    write_samples(sampled.Held(), tmp_path / "a", "shards")
    with pytest.raises(DataError, match="There are no train shards; write some, or name another"):
        RealShards(Manifest.read(tmp_path / "a"), "train")
    with pytest.raises(ValueError, match="There is no split 'val'"):
        Real(SOURCE, "val")
