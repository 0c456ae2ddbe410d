"""Shards of latents: equal to encoding on the spot, drawn by epoch and place, resumed, refused."""

import json
import pickle
from functools import partial

import latent
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from robustguide.data import (
    ENCODING,
    CropAndFlip,
    DataError,
    Digits,
    Images,
    LatentShards,
    LatentWriter,
    Manifest,
    ShardImages,
    fingerprint,
    write_shards,
)
from robustguide.data.batches import AUGMENT
from robustguide.data.latents import KEY
from robustguide.samplers import SeededNoise

SOURCE = partial(Digits, fold=(0, 20))  # 63 training images


def writer(**arguments):
    return LatentWriter(latent.codec(), **{"dtype": torch.float32, "per_shard": 40} | arguments)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("latents")
    writer().write(SOURCE(), str(folder))
    return folder


def test_the_manifest_says_what_the_latents_are(shards):
    manifest, codec = Manifest.read(shards), latent.codec()
    plain = json.loads((shards / "manifest.json").read_text())
    assert plain["encoding"] == {
        "codec": "KLCodec",
        "fingerprint": fingerprint(codec),
        "image_shape": [1, 8, 8],
        "factor": 2,
        "dtype": "float32",
        "mirrored": True,
        "scale": codec.scale.tolist(),
        "shift": codec.shift.tolist(),
    }
    assert manifest.shape == (2, 4, 4) and len(manifest.class_names) == 10
    assert [shard.count for shard in manifest.shards["train"]] == [40, 23]
    assert manifest.count("test") == len(Digits().split("test"))
    names = {path.name for path in shards.iterdir()}
    assert len(names) == 1 + sum(map(len, manifest.shards.values()))


@pytest.mark.parametrize("name", ["validation", "test"])
def test_evaluation_equals_encoding_on_the_spot(shards, name):
    """To the bit, in float32 and in batches of the same size."""
    split, source, codec = (
        LatentShards(str(shards)).split(name),
        SOURCE().split(name),
        latent.codec(),
    )
    assert len(split) == len(source)
    for first in (0, 40):
        rows = list(range(first, min(first + 40, len(source))))
        images, labels, index = source.__getitems__(rows)
        noise = SeededNoise(rows, ENCODING).draw(latent.LATENTS)
        x_0, y, found = split.__getitems__(rows)
        assert torch.equal(x_0, codec.encode(images, noise)) and x_0.dtype == torch.float32
        assert torch.equal(y, labels) and torch.equal(found, index)


def test_float16_is_near(shards, tmp_path):
    writer(dtype=torch.float16, mirrored=False).write(SOURCE(), str(tmp_path))
    fine, coarse = (LatentShards(str(folder)).split("test") for folder in (shards, tmp_path))
    difference = (fine[3][0] - coarse[3][0]).abs().max()
    assert 0 < difference < 0.01
    moments = load_file(tmp_path / "train-000000.safetensors")["moments"]
    assert moments.shape == (40, 1, 4, 4, 4) and moments.dtype == torch.float16


def test_training_draws_by_epoch_and_place(shards):
    """Mirroring and noise are those of the generator of (seed, epoch, place)."""
    data = Images(LatentShards(str(shards)), batch_size=16, seed=5)
    loader, codec = data.train_dataloader(), latent.codec()
    source, mirrored, seen = SOURCE().split("train"), [], {}
    for epoch in range(2):
        for x_0, _, index in loader:
            for row, place in zip(x_0, index.tolist(), strict=True):
                rng = np.random.default_rng([5, AUGMENT, epoch, place])
                mirrored.append(bool(rng.random() < 0.5))
                noise = torch.from_numpy(rng.standard_normal(latent.LATENTS, dtype=np.float32))
                image = source[place][0][None]
                image = image.flip(-1) if mirrored[-1] else image
                torch.testing.assert_close(row, codec.encode(image, noise[None])[0])
                seen[epoch, place] = row
    assert 0.3 < np.mean(mirrored) < 0.7
    both = {place for epoch, place in seen if epoch == 0} & {p for e, p in seen if e == 1}
    assert both and not any(torch.equal(seen[0, place], seen[1, place]) for place in both)
    again = Images(LatentShards(str(shards)), batch_size=16, seed=5).train_dataloader()
    first = next(iter(again))
    assert all(
        torch.equal(row, seen[0, p]) for row, p in zip(first[0], first[2].tolist(), strict=True)
    )


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_draw_the_same(shards):
    def batches(workers):
        data = Images(LatentShards(str(shards)), batch_size=16, num_workers=workers)
        return [x_0 for x_0, *_ in data.train_dataloader()]

    for alone, worked in zip(batches(0), batches(2), strict=True):
        assert torch.equal(alone, worked)
    split = LatentShards(str(shards)).split("test")
    before = split[0]
    assert torch.equal(pickle.loads(pickle.dumps(split))[0][0], before[0])


def test_the_data_module_knows_the_shape(shards):
    data = Images(LatentShards(str(shards)))
    assert data.shape == latent.LATENTS and data.num_classes == 10
    x_0, _, index = next(iter(data.test_dataloader()))
    assert x_0.shape[1:] == latent.LATENTS and index.tolist() == list(range(len(x_0)))
    with pytest.raises(ValueError, match="LatentShards cannot be changed by CropAndFlip; leave"):
        Images(LatentShards(str(shards)), augment=CropAndFlip())


def test_a_stopped_run_goes_on(shards, tmp_path):
    """It ends with the files of an unbroken one, and makes none of them twice."""
    for path in shards.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "train-000001.safetensors").unlink()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    told = []
    writer(tell=told.append).write(SOURCE(), str(tmp_path))
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    for path in shards.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()
    assert sum(told) == sum(
        Manifest.read(shards).count(name) for name in ("train", "validation", "test")
    )


def test_an_interrupted_shard_is_not_there(tmp_path):
    class Stopping(Digits):
        def open(self, name):
            if name == "test":
                raise KeyboardInterrupt
            return super().open(name)

    with pytest.raises(KeyboardInterrupt):
        writer().write(Stopping(fold=(0, 20)), str(tmp_path))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names[:2] == ["train-000000.safetensors", "train-000001.safetensors"]
    assert not any("part" in name or name == "manifest.json" for name in names)


@pytest.mark.parametrize(
    "change", [{"dtype": torch.float16}, {"mirrored": False}, {"per_shard": 30}]
)
def test_other_latents_are_not_mixed_in(shards, tmp_path, change):
    for path in shards.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(DataError, match="is of another codec, source or settings; choose another"):
        writer(**change).write(SOURCE(), str(tmp_path))


def test_another_codec_has_another_fingerprint():
    seen = {fingerprint(latent.codec())}
    for other in (latent.codec(scale=1.0), latent.codec(pixel_range=(0.0, 1.0))):
        seen.add(fingerprint(other))
    other = latent.codec()
    other.autoencoder.net.quant_conv.bias.data[0] += 1e-6
    assert len(seen | {fingerprint(other)}) == 4
    assert fingerprint(latent.codec(chunk=2)) in seen  # which changes nothing


def test_files_that_are_not_the_manifest_s(shards, tmp_path):
    for path in shards.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    path = tmp_path / "test-000000.safetensors"
    tensors = load_file(path)

    def first():
        return LatentShards(str(tmp_path)).split("test")[0]

    told = {KEY: json.dumps({"fingerprint": fingerprint(latent.codec())})}
    save_file(tensors, path, told)
    assert torch.equal(first()[0], LatentShards(str(shards)).split("test")[0][0])
    save_file(tensors, path)
    with pytest.raises(DataError, match=r"test-000000.* was encoded by another codec"):
        first()
    save_file(tensors | {"moments": tensors["moments"][:7]}, path, told)
    with pytest.raises(DataError, match=r"holds 7 x \[4, 4, 4\] moments and 40 labels"):
        first()
    save_file(tensors | {"y": tensors["y"] + 10}, path, told)
    with pytest.raises(DataError, match=r"label of row 0 of .* with 10 classes"):
        first()
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"Cannot read the latents .*test-000000"):
        first()
    with pytest.raises(
        DataError, match=r"Cannot read .*test-000000.*Delete it and run this again"
    ):
        writer().write(SOURCE(), str(tmp_path))


def test_images_and_latents_are_told_apart(shards, tmp_path):
    with pytest.raises(DataError, match=r"holds latents, not images; .*LatentShards"):
        ShardImages(str(shards))
    write_shards(SOURCE(), str(tmp_path))
    with pytest.raises(DataError, match=r"holds images, not latents; .*robustguide encode"):
        LatentShards(str(tmp_path))
    with pytest.raises(DataError, match="is of another codec, source or settings"):
        writer().write(SOURCE(), str(tmp_path))


@pytest.mark.parametrize(
    "arguments", [{"dtype": torch.bfloat16}, {"per_shard": 0}, {"batch_size": 0}]
)
def test_settings_that_are_none(arguments):
    with pytest.raises(ValueError, match="dtype must be float16 or float32, per_shard and batch"):
        writer(**arguments)


def test_latents_that_do_not_fit_are_refused(tmp_path):
    codec = latent.codec()
    codec.autoencoder.net.quant_conv.bias.data[0] = 1e6
    with pytest.raises(ValueError, match=r"latents that torch.float16 cannot hold; take float32"):
        LatentWriter(codec).write(SOURCE(), str(tmp_path))
    assert not list(tmp_path.iterdir())
