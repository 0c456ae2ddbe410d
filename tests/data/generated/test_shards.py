import json
import re

import numpy as np
import pytest
import sampled
import torch
from PIL import Image
from webdataset.writer import TarWriter

from robustguide.data import DataError, Digits, ShardImages, write_shards
from robustguide.data.crops import center_crop
from robustguide.data.generated import open_samples, write_samples
from robustguide.data.generated.base import as_png
from robustguide.data.reading import read_shards

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 1, 3, 4), dtype=np.uint8)


def tar(path, rows, **members):
    """A shard of another tool; each member is made of the row."""
    with path.open("wb") as file:
        writer = TarWriter(file, encoder=False)
        for row in rows:
            made = {name.replace("_", ""): make(row) for name, make in members.items()}
            writer.write({"__key__": f"{row:03d}", **made})
        writer.close()
    return path


def image(row):
    return as_png(IMAGES[row])


def label(row):
    return str(row % 2).encode()


def line(row, **more):
    return json.dumps({"index": 2 * row, "seed": 100 - row, **more}).encode()


def test_shards_of_another_tool(tmp_path):
    for part, rows in (("9", range(2)), ("10", range(2, 5)), ("11", range(5, 6))):
        tar(tmp_path / f"a-{part}.tar", rows, png=image, cls=label)
    for path, count in (
        (tmp_path, 6),
        (f"{tmp_path}/*.tar", 6),
        (f"{tmp_path}/a-{{9..10}}.tar", 5),
        (tmp_path / "a-9.tar", 2),
    ):
        samples = open_samples(path)
        found = sampled.together(samples, 2)
        assert samples.count == count and samples.shape == (1, 3, 4)
        assert np.array_equal(found.pixels.numpy(), IMAGES[:count])
        assert found.y.tolist() == [row % 2 for row in range(count)]
        assert found.index.tolist() == found.seed.tolist() == list(range(count))
        assert samples.made == {"kind": "shards"} and samples.class_names is None


def test_lines_and_no_labels(tmp_path):
    path = tar(tmp_path / "a.tar", range(4), png=image, json=lambda row: line(row, method="m"))
    samples = open_samples(path)
    found = sampled.together(samples)
    assert found.y is None and samples.made == {"kind": "shards", "method": "m"}
    assert found.index.tolist() == [0, 2, 4, 6] and found.seed.tolist() == [100, 99, 98, 97]
    assert torch.equal(samples.seeds(), found.seed)


def test_other_readers_read_what_is_written(tmp_path):
    samples = sampled.Held()
    write_samples(samples, tmp_path / "shards", "shards", per_shard=4)
    # as data of ours
    data = ShardImages(str(tmp_path / "shards"))
    x_0, y, _ = next(iter(data.test_dataloader()))
    assert torch.equal(((x_0 + 1) * 127.5).round().byte(), centre(samples.pixels))
    assert torch.equal(y, samples.y) and data.class_names == samples.class_names
    # by WebDataset's functions
    raws = list(read_shards(sorted((tmp_path / "shards").glob("*.tar"))))
    assert [raw["__key__"] for raw in raws] == [f"{i:08d}" for i in samples.index.tolist()]
    assert [int(raw["cls"]) for raw in raws] == samples.y.tolist()


def centre(pixels):
    """The square at the middle, resized to the height, as `ShardImages` cuts it."""
    cut = [np.asarray(center_crop(Image.fromarray(x.numpy()), 6)) for x in pixels.movedim(1, -1)]
    return torch.from_numpy(np.stack(cut)).movedim(-1, 1)


def test_splits_of_a_data_set_are_not_mixed(tmp_path):
    write_shards(Digits(fold=(0, 20)), str(tmp_path))
    with pytest.raises(DataError, match=r"holds the splits train, validation, test .*train-\*"):
        open_samples(tmp_path)
    assert open_samples(f"{tmp_path}/test-*.tar").count == 359


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"jpg": image, "cls": label}, "holds no samples; expected members"),
        ({"cls": label}, "holds no samples"),
        (
            {"png": image, "cls": lambda row: b"dog"},
            "label of 000 in .* is b.dog.; expected",
        ),
        ({"png": image, "json": lambda row: b"{"}, r"The line 000\.json in .* is no JSON"),
        ({"png": image, "json": lambda row: line(row, y="a")}, "000.json .* whole numbers"),
        ({"png": lambda row: image(row)[:50]}, "Cannot read the image 000 in"),
        ({"png": lambda row: b"\xff\xd8\xff" + bytes(9)}, "000 in .* is a JPEG file"),
        (
            {"png": image, "json": lambda row: line(row, method=str(row))},
            '001 in .* was made by .*"1".*, those before it by .*"0"',
        ),
        ({"png": image, "json": lambda row: line(-row + 9)}, "sample 16 comes after sample 18"),
        ({"png": image, "json": lambda row: line(0)}, "holds two samples of number 0"),
        (
            {"png": lambda row: as_png(IMAGES[row, :, : 3 - row % 2])},
            r"001 in .* is of shape \[1, 2, 4\], 000 in .* of \[1, 3, 4\]",
        ),
        (
            {"png": image, "json": lambda row: line(row, **({"y": 1} if row else {}))},
            "only one has a label",
        ),
    ],
)
def test_shards_that_hold_no_samples(tmp_path, members, said):
    tar(tmp_path / "a.tar", range(3), **members)
    with pytest.raises(ValueError) as raised:
        list(open_samples(tmp_path / "a.tar").batches(2))
    assert re.search(said, str(raised.value)), raised.value


def test_one_that_lacks_its_image(tmp_path):
    def drawn(row):
        return {"png": image(row)} if row == 0 else {"jpg": image(row)}

    with (tmp_path / "a.tar").open("wb") as file:
        writer = TarWriter(file, encoder=False)
        for row in range(2):
            writer.write({"__key__": str(row), **drawn(row)})
        writer.close()
    with pytest.raises(DataError, match=r"sample 1 in .* has an image of format jpg; only PNG"):
        list(open_samples(tmp_path / "a.tar").batches(2))


@pytest.mark.parametrize("kept", [0, 700, 2048, -1])
def test_a_shard_that_was_cut_short(tmp_path, kept):
    write_samples(sampled.Held(), tmp_path / "a.tar")
    content = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(content[:kept])
    with pytest.raises(DataError, match=r"Cannot read the shard .*a\.tar: it is cut short or no"):
        open_samples(tmp_path / "a.tar")


def test_a_shard_with_fewer_than_it_tells(tmp_path):
    write_samples(sampled.Held(), tmp_path / "a.tar")
    content = (tmp_path / "a.tar").read_bytes()
    last = content.index(b"00000015.")
    (tmp_path / "a.tar").write_bytes(content[:last] + bytes(10240))
    with pytest.raises(DataError, match="holds 6 samples and tells of 7; write it again"):
        list(open_samples(tmp_path / "a.tar").batches(3))
