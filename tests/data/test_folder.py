"""Folders of images: layouts, values, and what is said of bad files."""

import numpy as np
import pytest
import torch
from PIL import Image

from robustguide.data import DataError, Folder, Images
from robustguide.data.splits import SPLITS, split_of


def write(path, pixels=None, size=(12, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels is None:
        pixels = np.random.default_rng(len(path.name)).integers(256, size=(*size, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def names(split):
    return [file for file, _ in split.entries]


def test_names_alone_divide_a_folder_and_growth_moves_no_file(tmp_path):
    for name in ("dog", "cat"):
        for number in range(40):
            write(tmp_path / name / f"{number}.png")
    source = Folder(str(tmp_path), 8)
    assert source.class_names == ["cat", "dog"] and source.num_classes == 2
    before = {name: names(source.split(name)) for name in SPLITS}
    assert sorted(sum(before.values(), [])) == sorted(  # noqa: RUF017
        f"{name}/{number}.png" for name in ("cat", "dog") for number in range(40)
    )
    assert all(split_of(file) == name for name in SPLITS for file in before[name])
    write(tmp_path / "cat" / "sub" / "new.PNG")
    write(tmp_path / "cat" / ".hidden.png")
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    after = {name: names(Folder(str(tmp_path), 8).split(name)) for name in SPLITS}
    assert {file for name in SPLITS for file in set(after[name]) - set(before[name])} == {
        "cat/sub/new.PNG"
    }
    assert all(set(before[name]) <= set(after[name]) for name in SPLITS)


@pytest.mark.parametrize("validation, test", [("val", "test"), ("validation", "test")])
def test_subfolders_are_the_splits(tmp_path, validation, test):
    for place, count in (("train", 3), (validation, 2), (test, 1)):
        for name in ("a", "b"):
            for number in range(count):
                write(tmp_path / place / name / f"{number}.jpg")
    source = Folder(str(tmp_path), 8)
    assert {name: len(source.split(name)) for name in SPLITS} == {
        "train": 6,
        "validation": 4,
        "test": 2,
    }
    assert [source.split("train")[i][1] for i in range(6)] == [0, 0, 0, 1, 1, 1]


def test_val_alone_is_for_tests(tmp_path):
    for place, count in (("train", 60), ("val", 2)):
        for number in range(count):
            write(tmp_path / place / "a" / f"{number}.png")
    source = Folder(str(tmp_path), 8)
    train, validation, test = (names(source.split(name)) for name in SPLITS)
    assert len(test) == 2 and 1 <= len(validation) <= 15
    assert sorted(train + validation) == sorted(f"a/{number}.png" for number in range(60))


def test_values_and_channels(tmp_path):
    pixels = np.zeros((8, 8, 3))
    pixels[..., 0], pixels[0, 0, 2] = 255, 51
    write(tmp_path / "train" / "a" / "0.png", pixels)
    write(tmp_path / "test" / "a" / "0.png", pixels)
    x_0, y, index = Folder(str(tmp_path), 8).split("test")[0]
    assert x_0.dtype == torch.float32 and x_0.shape == (3, 8, 8) and (y, index) == (0, 0)
    assert (x_0[0] == 1).all() and (x_0[1] == -1).all() and x_0[2, 0, 0] == pytest.approx(-0.6)
    grey, _, _ = Folder(str(tmp_path), 4, channels=1).split("test")[0]
    assert grey.shape == (1, 4, 4) and grey[0, 3, 3] == pytest.approx(76 / 127.5 - 1)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_unreadable_image_is_named(tmp_path, num_workers):
    for number in range(3):
        for place in ("train", "test"):
            path = write(tmp_path / place / "a" / f"{number}.png", size=(40, 40))
    path.write_bytes(path.read_bytes()[:-3000])
    data = Images(Folder(str(tmp_path), 8), num_workers=num_workers)
    with pytest.raises(DataError) as error:
        list(data.test_dataloader())
    message = str(error.value)
    assert message.startswith(f"Cannot read the image {path}: ") and "Delete it" in message
    assert "Traceback" not in message


def test_sixteen_bits_are_refused(tmp_path):
    for place in ("train", "test"):
        (tmp_path / place / "a").mkdir(parents=True)
        deep = Image.fromarray(np.full((8, 8), 40000, dtype=np.uint16))
        deep.save(tmp_path / place / "a" / "0.png")
    with pytest.raises(DataError, match=r"0\.png has more than 8 bits"):
        Folder(str(tmp_path), 8).split("test")[0]


def test_empty_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=rf"{tmp_path} has no subfolder a class; expected ROOT/"):
        Folder(str(tmp_path), 8).split("train")
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match=rf"{tmp_path} holds no images .*expected ROOT/"):
        Folder(str(tmp_path), 8).split("train")
    with pytest.raises(DataError, match=r"There is no folder .*/nothing; expected ROOT/"):
        Folder(str(tmp_path / "nothing"), 8).split("train")
    write(tmp_path / "cat" / "0.png")
    here = split_of("cat/0.png")
    with pytest.raises(DataError, match="split of Folder is empty"):
        Folder(str(tmp_path), 8).split(next(name for name in SPLITS if name != here))


def test_class_without_training_images_is_named(tmp_path):
    write(tmp_path / "train" / "a" / "0.png")
    write(tmp_path / "test" / "b" / "0.png")
    with pytest.raises(DataError, match="classes that the training images have not: b"):
        Folder(str(tmp_path), 8).split("test")
