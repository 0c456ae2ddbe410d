"""Images that cannot be read while shards are made, and those of unusual kinds."""

import json
import shutil

import numpy as np
import photographs
import pytest
from photographs import write
from PIL import Image

from robustguide.data import DataError, Folder, ImageWriter, ShardImages
from robustguide.data.images import read_image
from robustguide.data.prepare import LIST
from robustguide.data.recipes import recipe
from robustguide.data.splits import SPLITS


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return photographs.thirty(tmp_path_factory.mktemp("photos"))


@pytest.fixture
def damaged(photos, tmp_path):
    """Five of thirty images cannot be read; the reason for each."""
    source = tmp_path / "damaged"
    shutil.copytree(photos, source)
    path = source / "train/cat/0.png"
    path.write_bytes(path.read_bytes()[:-400])
    (source / "train/dog/3.png").write_text("no image")
    (source / "train/dog/4.png").write_bytes(b"")
    (source / "train/dog/5.png").unlink()
    (source / "train/dog/5.png").symlink_to("nowhere")
    deep = Image.fromarray(np.full((9, 9), 40000, dtype=np.uint16))
    photographs.save(source / "test/cat/1.png", deep)
    return source, {
        "train/cat/0.png": "truncated",
        "train/dog/3.png": "cannot identify image file 'train/dog/3.png'",
        "train/dog/4.png": "cannot identify image file",
        "train/dog/5.png": "No such file or directory",
        "test/cat/1.png": "more than 8 bits a channel",
    }


@pytest.mark.parametrize("num_workers", [0, 2])
def test_unreadable_images_are_listed_and_left_out(damaged, tmp_path, num_workers):
    source, reasons = damaged
    shards = tmp_path / "shards"
    manifest = write(source, shards, limit=5 / 30, num_workers=num_workers)
    assert [manifest.count(split) for split in SPLITS] == [14, 4, 7]
    lines = [line.split("\t") for line in (shards / LIST).read_text().splitlines()]
    assert {name: split for split, name, _ in lines} == {
        name: name.partition("/")[0] for name in reasons
    }
    assert all(reasons[name] in reason for _, name, reason in lines)
    plain = json.loads((shards / "manifest.json").read_text())
    assert plain["unreadable"] == {"train": 4, "validation": 0, "test": 1}
    assert [tuple(line[1:]) for line in lines if line[0] == "test"] == [
        each for shard in manifest.shards["test"] for each in shard.unreadable
    ]
    data = ShardImages(str(shards), eval_batch_size=50)
    (batch,) = data.test_dataloader()
    assert batch[1].tolist() == [0, 0, 0, 1, 1, 1, 1]


def test_repaired_images_are_taken_in(damaged, photos, tmp_path):
    source, reasons = damaged
    shards = tmp_path / "shards"
    write(source, shards, limit=1)
    again = photographs.contents(shards)
    write(source, shards, limit=1)
    assert photographs.contents(shards) == again
    for name in reasons:
        (source / name).unlink()
        shutil.copy(photos / name, source / name)
    write(source, shards)
    write(photos, tmp_path / "whole")
    assert photographs.contents(shards) == photographs.contents(tmp_path / "whole")


def test_too_many_unreadable_images_end_the_run(damaged, tmp_path):
    source, reasons = damaged
    shards = tmp_path / "shards"
    with pytest.raises(DataError, match=r"Of 30 images . cannot be read so far") as caught:
        write(source, shards, limit=0.05)
    listed = [line.split("\t")[1] for line in (shards / LIST).read_text().splitlines()]
    assert set(listed) <= set(reasons) and len(listed) >= 2
    message = str(caught.value)
    assert f"Of 30 images {len(listed)} cannot" in message and str(shards / LIST) in message
    assert "the share of 0.05" in message and sorted(listed)[0] in message
    assert not (shards / "manifest.json").exists()
    write(source, shards, limit=0.2)
    write(source, tmp_path / "unbroken", limit=0.2)
    assert photographs.contents(shards) == photographs.contents(tmp_path / "unbroken")


def test_a_shard_may_be_empty(damaged, tmp_path):
    source, _ = damaged
    for path in (source / "test").rglob("*.png"):
        path.write_bytes(b"")
    for number in range(2, 4):
        shutil.copy(source / "train/cat/2.png", source / f"test/dog/{number}.png")
    manifest = write(source, tmp_path / "shards", limit=1)
    assert [shard.count for shard in manifest.shards["test"]] == [0, 2]
    (batch,) = ShardImages(str(tmp_path / "shards"), eval_batch_size=9).test_dataloader()
    assert batch[1].tolist() == [1, 1]


def test_kinds_of_images_are_read_as_everywhere(tmp_path):
    """CMYK, palettes, grey, alpha (dropped) and two levels; the orientation in EXIF is ignored."""
    colour = photographs.photograph(3, 40, 20)
    clear = Image.merge("RGBA", [*colour.split(), Image.new("L", colour.size, 40)])
    kinds = {
        "cmyk.jpg": colour.convert("CMYK"),
        "palette.png": colour.convert("P"),
        "palette.gif": colour.convert("P"),
        "grey.png": colour.convert("L"),
        "two.png": colour.convert("1"),
        "alpha.png": clear,
        "grey_alpha.png": clear.convert("LA"),
        "turned.jpg": colour,
    }
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by a quarter
    for name, image in kinds.items():
        for split in ("train", "test"):
            path = photographs.save(tmp_path / split / "a" / name, image)
            if name == "turned.jpg":
                image.save(path, exif=exif)
    for channels, mode in ((3, "RGB"), (1, "L")):
        source = Folder(str(tmp_path), 10, channels)
        shards = tmp_path / mode
        ImageWriter(recipe("edm")).write(source, str(shards), "edm")
        (batch,) = ShardImages(str(shards), eval_batch_size=20).test_dataloader()
        for x_0, (file, _) in zip(batch[0], source.split("test").entries, strict=True):
            image = read_image(tmp_path / "test" / file, file).convert(mode)
            pixels = np.asarray(recipe("edm")(image, 10)).reshape(10, 10, channels)
            found = ((x_0 + 1) * 127.5).round().byte().numpy().transpose(1, 2, 0)
            np.testing.assert_array_equal(found, pixels, err_msg=file)
            assert image.size == (40, 20)
