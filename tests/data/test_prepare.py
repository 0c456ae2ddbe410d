"""Preparation of images as shards: what they hold, how it goes on, what is said of bad input."""

import gc
import json
import shutil
import subprocess
import sys
import tarfile
from collections import Counter

import numpy as np
import photographs
import pytest
import webdataset
from photographs import SIZE, write
from PIL import Image

from robustguide.data import (
    DataError,
    Folder,
    ImageWriter,
    Manifest,
    ShardImages,
)
from robustguide.data.forms import Form
from robustguide.data.notes import FOLDER
from robustguide.data.recipes import RECIPES, recipe
from robustguide.data.splits import SPLITS, chance
from robustguide.files import LOCK


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return photographs.thirty(tmp_path_factory.mktemp("photos"))


def members(path):
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def expected(source, split, index, name="edm"):
    """The recipe on a file, by hand."""
    file, y = Folder(str(source), SIZE).split(split).entries[index]
    folder = {"validation": "val"}.get(split, split)
    image = Image.open(source / folder / file).convert("RGB")
    return np.asarray(recipe(name)(image, SIZE)), y


@pytest.mark.parametrize("form", ["png", "raw"])
@pytest.mark.parametrize("name", RECIPES)
def test_shards_hold_what_the_recipe_makes(photos, tmp_path, form, name):
    manifest = write(photos, tmp_path / "a", crop=recipe(name), form=Form(form))
    assert [manifest.count(split) for split in SPLITS] == [18, 4, 8]
    seen, suffix = [], {"png": "png", "raw": "npy"}[form]
    for shard in manifest.shards["train"]:
        for file in members(shard.path):
            assert file.endswith((suffix, "cls"))
            seen += [int(file[:8])] if file.endswith("cls") else []
    assert seen == sorted(range(18), key=chance)
    data = ShardImages(str(tmp_path / "a"), eval_batch_size=3)
    for split, loader in (("test", data.test_dataloader()), ("validation", data.val_dataloader())):
        labels, places = Counter(), []
        for x_0, y, index in loader:
            for image, label, place in zip(x_0, y.tolist(), index.tolist(), strict=True):
                pixels, theirs = expected(photos, split, place, name)
                found = ((image.double() + 1) * 127.5).numpy().transpose(1, 2, 0)
                np.testing.assert_allclose(found, pixels, rtol=0, atol=1e-4)
                assert label == theirs
                labels[label] += 1
                places.append(place)
        count = {"test": 4, "validation": 2}[split]
        assert labels == {0: count, 1: count} and places == list(range(2 * count))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_them(photos, tmp_path):
    for form, suffix in (("png", "png"), ("raw", "npy"), ("jpeg", "jpg")):
        write(photos, tmp_path / form, form=Form(form))
        tars = sorted(str(path) for path in (tmp_path / form).glob("train-*.tar"))
        images = webdataset.WebDataset(tars, shardshuffle=False, empty_check=False)
        samples = list(images.decode("rgb8").to_tuple("__key__", suffix, "cls"))
        assert len(samples) == 18
        for key, pixels, y in samples:
            theirs, label = expected(photos, "train", int(key))
            assert y == label and pixels.dtype == np.uint8
            worst = np.abs(pixels.astype(int) - theirs).max()
            assert worst == 0 if form != "jpeg" else 0 < worst < 24
    gc.collect()  # webdataset leaves the closing of files to it, which Python warns of


def test_training_reads_raw_images(photos, tmp_path):
    write(photos, tmp_path, form=Form("raw"))
    x_0, y, _ = next(iter(ShardImages(str(tmp_path), batch_size=18).train_dataloader()))
    rows = [expected(photos, "train", i) for i in range(18)]
    known = {(pixels.tobytes(), label) for pixels, label in rows}
    levels = ((x_0 + 1) * 127.5).round().byte().numpy().transpose(0, 2, 3, 1)
    assert {(image.tobytes(), label) for image, label in zip(levels, y.tolist(), strict=True)} <= (
        known
    )


def test_quality_of_jpeg(photos, tmp_path):
    sizes = {}
    for quality in (30, 95):
        manifest = write(photos, tmp_path / str(quality), form=Form("jpeg", quality))
        assert manifest.prepared.quality == quality
        sizes[quality] = sum(
            len(content)
            for path in (tmp_path / str(quality)).glob("*.tar")
            for name, content in members(path).items()
            if name.endswith("jpg")
        )
    assert sizes[30] < sizes[95]
    for options in ({"format": "gif"}, {"quality": 0}, {"quality": 101}):
        with pytest.raises(ValueError, match="expected"):
            Form(**options)


def test_the_manifest_tells_all(photos, tmp_path):
    write(photos, tmp_path)
    plain = json.loads((tmp_path / "manifest.json").read_text())
    assert plain["recipe"] == "edm" and plain["shape"] == [3, SIZE, SIZE]
    assert plain["class_names"] == ["cat", "dog"]
    assert plain["counts"] == plain["prepared"]["found"]
    assert plain["unreadable"] == {"train": 0, "validation": 0, "test": 0}
    assert [entry["count"] for entry in plain["shards"]["train"]] == [4, 4, 4, 4, 2]
    prepared = plain["prepared"]
    assert (prepared["source"], prepared["format"], prepared["quality"]) == ("Folder", "png", None)
    for entry in plain["shards"]["test"]:
        path = tmp_path / entry["file"]
        done = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True)
        assert entry["sha256"] == done.stdout.split()[0]
        assert entry["size"] == path.stat().st_size


def test_manifests_without_checksums_are_read(photos, tmp_path):
    write(photos, tmp_path)
    path = tmp_path / "manifest.json"
    plain = json.loads(path.read_text())
    del plain["prepared"], plain["unreadable"]
    for shard in (shard for split in plain["shards"].values() for shard in split):
        del shard["size"], shard["sha256"]
    path.write_text(json.dumps(plain))
    manifest = Manifest.read(tmp_path)
    assert manifest.prepared is None and manifest.shards["train"][0].sha256 is None
    with pytest.raises(DataError, match=r"source is None there, Folder here; images is None"):
        write(photos, tmp_path)


def test_bytes_do_not_depend_on_workers_or_places(photos, tmp_path):
    write(photos, tmp_path / "one")
    write(photos, tmp_path / "two", num_workers=2)
    shutil.copytree(photos, tmp_path / "moved")
    write(tmp_path / "moved", tmp_path / "three", num_workers=1)
    first = photographs.contents(tmp_path / "one")
    assert len(first) == 9  # five, one and two shards, and the manifest
    assert first == photographs.contents(tmp_path / "two")
    assert first == photographs.contents(tmp_path / "three")


class Stop(Exception):
    """Ends a run."""


def stopped(source, folder, after):
    """A run that ends when it has told of more images; what it left."""
    seen = 0

    def stop(count):
        nonlocal seen
        seen += count
        if seen > after:
            raise Stop

    with pytest.raises(Stop):
        write(source, folder, tell=stop)
    return photographs.contents(folder)


@pytest.mark.parametrize("after", [0, 5, 13, 29])
def test_a_run_that_was_stopped_goes_on(photos, tmp_path, after):
    write(photos, tmp_path / "whole")
    whole, part = photographs.contents(tmp_path / "whole"), tmp_path / "part"
    left = stopped(photos, part, after)
    tars = {name: content for name, content in left.items() if name.endswith(".tar")}
    assert "manifest.json" not in left and not [name for name in left if name.endswith(".part")]
    assert tars == {name: whole[name] for name in tars}
    notes = [json.loads(left[name]) for name in left if name.endswith(".tar.json")]
    noted = {note["file"] for note in notes}
    assert noted == set(tars) and len(noted) >= 1
    times = {name: (part / name).stat().st_mtime_ns for name in noted}
    (part / ".train-000000.tar.1.part").write_bytes(b"half")  # as a killed process leaves it
    told = []
    write(photos, part, tell=told.append)
    assert photographs.contents(part) == whole
    assert sum(told) == 30 and told[0] == sum(note["count"] for note in notes)
    assert times == {name: (part / name).stat().st_mtime_ns for name in noted}


def test_a_finished_folder_stays_and_a_lost_shard_comes_back(photos, tmp_path):
    write(photos, tmp_path)
    before = photographs.contents(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    told = []
    write(photos, tmp_path, tell=told.append, num_workers=2)
    assert told == [30]
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    (tmp_path / "train-000002.tar").unlink()
    (tmp_path / "test-000000.tar").write_bytes(b"cut")
    write(photos, tmp_path)
    assert photographs.contents(tmp_path) == before


@pytest.mark.parametrize(
    "options, message",
    [
        ({"per_shard": 5}, r"\(per_shard is 4 there, 5 here\)"),
        ({"form": Form("jpeg")}, r"\(format is png there, jpeg here; quality is None there, 95"),
        ({"form": Form("raw")}, r"\(format is png there, raw here\)"),
    ],
)
def test_other_settings_are_refused(photos, tmp_path, options, message):
    stopped(photos, tmp_path / "begun", 9)
    write(photos, tmp_path / "finished")
    before = photographs.contents(tmp_path)
    for name in ("begun", "finished"):
        with pytest.raises(DataError, match="already holds shards of other settings " + message):
            write(photos, tmp_path / name, **options)
    assert photographs.contents(tmp_path) == before


def test_other_images_are_refused(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "photos")
    write(photos, tmp_path / "shards")
    added = photographs.save(tmp_path / "photos/train/dog/new.png", photographs.photograph(0))
    message = (
        r"\(images is \w{12}\.\.\. there, \w{12}\.\.\. here; found is .*train.: 18.*train.: 19"
    )
    with pytest.raises(DataError, match=message):
        write(tmp_path / "photos", tmp_path / "shards")
    added.rename(added.with_name("0.jpg"))
    (tmp_path / "photos/train/dog/0.png").unlink()
    with pytest.raises(DataError, match=r"\(images is \w{12}\.\.\. there, \w{12}\.\.\. here\)"):
        write(tmp_path / "photos", tmp_path / "shards")


def test_shards_of_unknown_origin_are_left_alone(photos, tmp_path):
    (tmp_path / "old.tar").write_bytes(b"something")
    with pytest.raises(DataError, match="already holds shards that nothing tells of"):
        write(photos, tmp_path)
    assert photographs.contents(tmp_path) == {"old.tar": b"something"}
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match=r"Cannot read .*manifest.json: KeyError"):
        write(photos, tmp_path)
    assert len(photographs.contents(tmp_path)) == 2


def test_a_run_at_the_same_time_is_refused(photos, tmp_path):
    (tmp_path / FOLDER).mkdir()
    code = (
        "import fcntl, sys; file = open(sys.argv[1], 'wb'); fcntl.lockf(file, fcntl.LOCK_EX);"
        "print(flush=True); sys.stdin.read()"
    )
    words = [sys.executable, "-c", code, tmp_path / FOLDER / LOCK]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(DataError, match=f"Another run is writing to {tmp_path}"):
            write(photos, tmp_path)
        other.stdin.close()
    write(photos, tmp_path)


def test_small_images_are_enlarged(photos, tmp_path):
    for name in RECIPES:
        source = Folder(str(photos), 64)
        ImageWriter(recipe(name)).write(source, str(tmp_path / name), name)
        (batch,) = ShardImages(str(tmp_path / name), eval_batch_size=8).test_dataloader()
        assert batch[0].shape == (8, 3, 64, 64)


def test_a_split_for_evaluation_may_be_missing(photos, tmp_path):
    shutil.copytree(photos / "train", tmp_path / "photos/train")
    shutil.copytree(photos / "test", tmp_path / "photos/test")
    source = Folder(str(tmp_path / "photos"), SIZE, validation_fraction=0)
    manifest = ImageWriter().write(source, str(tmp_path / "shards"))
    assert [manifest.count(split) for split in SPLITS] == [18, 0, 8]
    held = Folder(str(tmp_path / "photos"), SIZE, validation_fraction=0.5).split("validation")
    assert 3 <= len(held) <= 15
