"""ImageNet's validation images in one folder, and the files that tell their classes."""

import photographs
import pytest
import torch

from robustguide.data import DataError, Folder
from robustguide.data.labels import CSV, META, TEXT

IMAGES = [f"ILSVRC2012_val_0000000{i}.JPEG" for i in (1, 2, 3, 4)]
CLASSES = ["n02", "n01", "n03", "n01"]
ROWS = list(zip(IMAGES, CLASSES, strict=True))


@pytest.fixture
def imagenet(tmp_path):
    photographs.folder(tmp_path, {"train": 2}, ("n01", "n02", "n03"), "JPEG")
    for i, name in enumerate(IMAGES):
        photographs.save(tmp_path / "val" / name, photographs.photograph(i))
    return tmp_path


def kaggle():
    """Rows in another order, with boxes behind the class."""
    rows = [f"{name[:-5]},{label} 1 2 30 40 {label} 5 6 7 8 " for name, label in ROWS]
    return "\n".join(["ImageId,PredictionString", *reversed(rows)])


def labels(root):
    split = Folder(str(root), 8, validation_fraction=0.3).split("test")
    assert [split.key(i) for i in range(4)] == [f"val/{name}" for name in IMAGES]
    return [split[i][1] for i in range(4)]


def test_files_that_lie_beside(imagenet):
    torch.save(({}, CLASSES), imagenet / META)
    assert labels(imagenet) == [1, 0, 2, 0]
    (imagenet / TEXT).write_text("\n".join(["n03", *CLASSES[1:], ""]))
    assert labels(imagenet) == [2, 0, 2, 0]
    (imagenet / CSV).write_text(kaggle())
    assert labels(imagenet) == [1, 0, 2, 0]


@pytest.mark.parametrize(
    "text",
    [kaggle(), "\n".join(f"{name} {label}" for name, label in ROWS), "\n".join(CLASSES)],
    ids=["csv", "names", "order"],
)
def test_a_file_that_is_given(imagenet, text):
    file = imagenet / "labels.txt"
    file.write_text(text)
    split = Folder(str(imagenet), 8, labels=str(file)).open("test")
    assert [y for _, y in split.entries] == [1, 0, 2, 0]
    assert split.listed(0) == f"val/{IMAGES[0]} 1"


def test_without_labels_nothing_is_guessed(imagenet):
    message = (
        rf"4 validation images such as {IMAGES[0]} lie in one folder .*none of {CSV}, .*devkit"
    )
    with pytest.raises(DataError, match=message):
        Folder(str(imagenet), 8).split("test")
    with pytest.raises(DataError, match=r"there is no nothing\.txt"):
        Folder(str(imagenet), 8, labels="nothing.txt").split("test")


@pytest.mark.parametrize(
    "text, message",
    [
        ("n01\nn02\n", r"tells 2 classes for 4 images; expected a file of lines"),
        (f"{IMAGES[0]} n01\n", r"no class of 3 images, such as .*2\.JPEG"),
        ("490\n361\n171\n822\n", r"name 4 classes that the training images have not.*'171'"),
        ("\xff", "tells 1 classes"),
    ],
)
def test_labels_that_do_not_fit(imagenet, text, message):
    file = imagenet / "labels.txt"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        Folder(str(imagenet), 8, labels=str(file)).split("test")


@pytest.mark.parametrize("name", ["labels.txt", "labels.bin"])
def test_files_of_another_kind(imagenet, name):
    file = imagenet / name
    file.write_bytes(b"\xff\x00\xfe")
    with pytest.raises(DataError, match=rf"Cannot read the labels .*{name}: .*expected a file"):
        Folder(str(imagenet), 8, labels=str(file)).split("test")


def test_a_flat_folder_of_training_images_is_no_class(tmp_path):
    for split in ("train", "val"):
        photographs.save(tmp_path / split / "0.png", photographs.photograph(0))
    with pytest.raises(DataError, match=r"/train has no subfolder a class"):
        Folder(str(tmp_path), 8).split("train")


def test_images_without_classes_are_told_of(imagenet):
    (imagenet / TEXT).write_text("\n".join(CLASSES))
    photographs.save(imagenet / "test" / "0.JPEG", photographs.photograph(0))
    assert Folder(str(imagenet), 8).left_out == [str(imagenet / "test")]
    assert Folder(str(imagenet / "train"), 8).left_out == []
