"""`robustguide prepare`, through the door of the command line."""

import json
import shutil
import struct
import subprocess
import sys

import numpy as np
import photographs
import pytest
from rich.console import Console

from robustguide.__main__ import main, repair_of
from robustguide.commands import prepare
from robustguide.data import DataError, Folder, ShardImages
from robustguide.data.recipes import recipe


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    return photographs.folder(root, {"train": 6, "val": 2, "test": 3}, suffix="jpg")


def run(*words, workers=0):
    """Exit code."""
    return main(["prepare", *map(str, words), f"--workers={workers}"])


@pytest.mark.parametrize("name, form", [("adm-center-crop", "png"), ("torchvision", "raw")])
def test_a_folder(photos, tmp_path, capsys, name, form):
    words = [photos, tmp_path / "a", "--size=16", f"--recipe={name}", f"--format={form}"]
    assert run(*words, "--per-shard=5", workers=1) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line == (
        f"{tmp_path / 'a'}: 12 train, 4 validation, 6 test images of 16 x 16 x 3 in 2 classes, "
        f"6 shards ({name}, {form})"
    )
    data = ShardImages(str(tmp_path / "a"), eval_batch_size=6)
    (batch,) = data.test_dataloader()
    split = Folder(str(photos), 16).split("test")
    for x_0, y, index in zip(*batch, strict=True):
        image, label, _ = split.read(int(index), recipe(name))
        assert (x_0 == image).all() and y == label
    before = photographs.contents(tmp_path)
    assert run(*words, "--per-shard=5") == 0 and photographs.contents(tmp_path) == before
    with pytest.raises(DataError, match=r"\(recipe is .* there, edm here; per_shard is 5 there"):
        run(*words, "--recipe=edm")


def idx(path, array):
    """A file as Fashion-MNIST has them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape)
    path.write_bytes(head + array.tobytes())


def test_a_data_set_of_torchvision(tmp_path, capsys):
    raw, rng = tmp_path / "FashionMNIST/raw", np.random.default_rng(0)
    images = {"train": rng.integers(256, size=(40, 28, 28), dtype=np.uint8)}
    images["t10k"] = rng.integers(256, size=(10, 28, 28), dtype=np.uint8)
    for name, pixels in images.items():
        idx(raw / f"{name}-images-idx3-ubyte", pixels)
        idx(raw / f"{name}-labels-idx1-ubyte", np.arange(len(pixels), dtype=np.uint8) % 10)
    source = ["torchvision:FashionMNIST", tmp_path / "shards", f"--root={tmp_path}"]
    assert run(*source, "--channels=1", "--validation-fraction=0.25") == 0
    shown = capsys.readouterr().out
    assert ": 30 train, 10 validation, 10 test images of 28 x 28 x 1 in 10 classes" in shown
    (batch,) = ShardImages(str(tmp_path / "shards"), eval_batch_size=10).test_dataloader()
    levels = ((batch[0] + 1) * 127.5).round().byte().numpy()[:, 0]
    np.testing.assert_array_equal(levels, images["t10k"])
    plain = json.loads((tmp_path / "shards/manifest.json").read_text())
    assert plain["prepared"]["source"] == "FashionMNIST" and plain["class_names"][5] == "Sandal"
    with pytest.raises(DataError, match=r"CIFAR10 \(train\) is not in"):
        run("torchvision:CIFAR10", tmp_path / "b", f"--root={tmp_path}")


@pytest.mark.parametrize("top", ["", "ILSVRC"])
def test_imagenet_as_it_is_delivered(tmp_path, capsys, top):
    root = tmp_path / "imagenet"
    place = photographs.folder(
        root / top / "Data/CLS-LOC", {"train": 8}, ("n01", "n02"), suffix="JPEG"
    )
    for i in range(4):
        photographs.save(place / f"val/val_{i}.JPEG", photographs.photograph(i))
    photographs.save(place / "test/test_0.JPEG", photographs.photograph(9))
    words = [root, tmp_path / "shards", "--size=8", "--validation-fraction=0.2"]
    with pytest.raises(DataError, match=r"4 validation images such as val_0\.JPEG lie in one"):
        run(*words)
    rows = ["ImageId,PredictionString", *(f"val_{i},n0{1 + i % 2} 0 0 9 9" for i in range(4))]
    (root / "LOC_val_solution.csv").write_text("\n".join(rows))
    capsys.readouterr()
    assert run(*words) == 0
    told = capsys.readouterr()
    assert told.err == f"{place / 'test'} has no folder for each class and is left out.\n"
    (batch,) = ShardImages(str(tmp_path / "shards"), eval_batch_size=4).test_dataloader()
    assert batch[1].tolist() == [0, 1, 0, 1]
    assert "4 test images of 8 x 8 x 3 in 2 classes" in told.out


def test_unreadable_images_are_told_of(photos, tmp_path, capsys):
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos/train/cat/1.jpg").write_bytes(b"")
    words = [tmp_path / "photos", tmp_path / "shards", "--size=8"]
    with pytest.raises(DataError, match=r"Of 22 images 1 cannot .* the share of 0\.001 .*1\.jpg"):
        run(*words)
    assert run(*words, "--limit-unreadable=0.05") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == (
        "1 images cannot be read and are left out; "
        f"{tmp_path / 'shards/unreadable.txt'} lists them."
    )


def test_verify(photos, tmp_path, capsys):
    run(photos, tmp_path, "--size=8", "--per-shard=4")
    assert run("--verify", tmp_path, workers=2) == 0
    assert (
        capsys.readouterr().out.splitlines()[-1] == f"{tmp_path}: 6 shards of 22 images; 0 faults"
    )
    (tmp_path / "train-000001.tar").write_bytes(b"cut")
    (tmp_path / "test-000000.tar").unlink()
    assert run("--verify", tmp_path) == 1
    first, second, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{tmp_path}: train-000001.tar: has 3 bytes; the manifest says ")
    assert second == f"{tmp_path}: test-000000.tar: is missing"
    assert last == f"{tmp_path}: 6 shards of 22 images; 2 faults"


def test_a_terminal_sees_a_bar(photos, tmp_path, monkeypatch):
    consoles = []

    def console():
        consoles.append(Console(force_terminal=True, record=True, width=100))
        return consoles[-1]

    monkeypatch.setattr(prepare, "Console", console)
    run(photos, tmp_path, "--size=8")
    run("--verify", tmp_path)
    shown = [each.export_text() for each in consoles]
    assert "preparing" in shown[0] and "22/22" in shown[0]
    assert "verifying" in shown[1] and "22/22" in shown[1]


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "Give SOURCE and FOLDER, as in robustguide prepare"),
        (["{photos}"], "Give SOURCE and FOLDER"),
        (["{photos}", "{new}"], "Give the pixels on a side of the images, such as --size 128"),
        (["{photos}", "{new}", "--size=0"], "size is 0"),
        (["{photos}", "{new}", "--size=8", "--recipe=biggan"], "no recipe 'biggan'; expected one"),
        (["{photos}", "{new}", "--size=8", "--per-shard=0"], "per_shard is 0; expected 1 or more"),
        (["{photos}", "{new}", "--size=8", "--root=x"], "--root is of a data set of torchvision"),
        (
            ["{photos}/train/cat/0.jpg", "{new}", "--size=8"],
            r"cat/0\.jpg is a file; expected ROOT",
        ),
        (["{photos}/none", "{new}", "--size=8"], "There is no folder .*none"),
        (["{photos}/train/cat", "{new}", "--size=8"], "has no subfolder a class"),
        (["{one}", "{new}", "--size=8"], r"holds one class \(cat\), and a classifier needs two"),
        (["torchvision:CIFAR10", "{new}"], "torchvision:CIFAR10 needs --root"),
        (["torchvision:Nothing", "{new}", "--root=x"], "has no data set 'Nothing'"),
        (["--verify", "{photos}"], r"There is no manifest\.json in .*photos"),
    ],
)
def test_bad_input(photos, tmp_path, words, message):
    photographs.folder(tmp_path / "one", {"train": 2}, ("cat",))
    names = {"photos": photos, "new": tmp_path / "new", "one": tmp_path / "one"}
    with pytest.raises((ValueError, OSError), match=message):
        run(*(word.format(**names) for word in words))
    assert not (tmp_path / "new").exists()


def test_a_full_disk_is_told_once():
    told = OSError(28, "Cannot write (No space left on device); free space or choose another", "a")
    assert repair_of(told) == "" and "default_root_dir" in repair_of(OSError(28, "No space left"))


def test_help_has_examples_and_needs_no_torch():
    code = "import sys\nfrom robustguide.__main__ import main\ntry: main(['prepare', '--help'])\n"
    code += "except SystemExit: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "robustguide prepare torchvision:CIFAR10" in done.stdout
    assert all(f"\n  {name} " in done.stdout for name in ("adm-center-crop", "edm", "torchvision"))
