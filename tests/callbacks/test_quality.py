"""Quality by a protocol: numbers with all that defines them, and curves along the way."""

import json

import pytest
import tiny
import torch

from robustguide import load_classifier, load_denoiser
from robustguide.callbacks import Quality, SampleGrid
from robustguide.callbacks.quality import by_the_first, own_protocol
from robustguide.callbacks.references import reference_of
from robustguide.checkpoints import build
from robustguide.data import Digits, SeedData
from robustguide.data.statistics import places
from robustguide.guidance import ClassifierGuidance, Scaled
from robustguide.interfaces import Denoiser, Prediction, to_pixels
from robustguide.metrics.extractor import Identity
from robustguide.metrics.features import ClassifierFeatures
from robustguide.metrics.frechet import Moments, frechet_distance
from robustguide.metrics.jackknife import Jackknife, groups_of
from robustguide.metrics.protocols import protocol
from robustguide.metrics.reference import Provenance, Reference
from robustguide.modules import Generation
from robustguide.noise import ChainGrid, RhoGrid, linear_levels
from robustguide.samplers import Ancestral, Heun

KINDS = ("frechet", "kid", "precision", "recall")


@pytest.fixture(scope="module")
def module(runs):
    denoiser = load_denoiser(str(runs / "denoiser/denoiser.safetensors"))
    sampler = Ancestral(grid=ChainGrid(linear_levels(), "8"), clip=None)
    return Generation(denoiser, sampler, watched_steps=3)


@pytest.fixture(scope="module")
def features(runs):
    network = load_classifier(str(runs / "classifier/classifier.safetensors"))
    return ClassifierFeatures(network, "tiny_features")


@pytest.fixture(scope="module")
def data():
    return SeedData(count=30, num_classes=10, batch_size=8, reference=Digits(), first=5)


@pytest.fixture(scope="module")
def measured(module, features, data, tmp_path_factory):
    """A run, and what it logged."""
    folder, callback = tmp_path_factory.mktemp("quality"), Quality(extractor=features)
    (logged,) = tiny.trainer(folder, callback).test(module, datamodule=data, verbose=False)
    return folder, callback, logged


@pytest.fixture(scope="module")
def real(features, data):
    images = torch.stack([data.reference[row][0] for row in range(len(data.reference))])
    return features(to_pixels(images))["features"]


def test_it_is_the_distance_of_all_images(measured, module, features, data, real):
    """Of the last images and of the predicted ones, as bytes, from all reference images."""
    folder, callback, logged = measured
    answer = module.test_step((torch.arange(5, 35), data.y), 0)
    reference = Moments.of(real)

    def distance(images):
        return frechet_distance(Moments.of(features(to_pixels(images))["features"]), reference)

    # batches of 8 and of 30 round differently, and so do bytes at the borders
    found = callback.metrics["frechet/tiny_features"]
    assert found["value"] == pytest.approx(distance(answer["images"]), rel=2e-3)
    assert logged["test/frechet/tiny_features"] == pytest.approx(found["value"], rel=1e-6)
    curve = callback.curves["frechet/tiny_features"]
    assert curve["sigma"] == list(module.levels)
    for value, denoised in zip(curve["frechet/tiny_features"], answer["denoised"], strict=True):
        assert value == pytest.approx(distance(denoised), rel=2e-3)
    # the last step of a chain returns its denoised image
    assert curve["frechet/tiny_features"][-1] == pytest.approx(found["value"], rel=1e-9)
    assert (folder / "test_frechet_tiny_features_by_noise.png").is_file()
    assert not (folder / "features").exists()  # what was measured is not kept


def test_every_number_tells_what_defines_it(measured, features, real):
    _, callback, _ = measured
    assert callback.metrics.keys() == {"frechet/tiny_features"}
    reference = callback.reference
    digest = reference.provenance.digest
    for found in callback.metrics.values():
        assert found["shown"] == "FD-30@tiny_features" and found["n"] == 30
        assert found["extractor"] == str(features.identity) and found["reference_n"] == len(real)
        assert found["reference"] == {
            "data": "Digits",
            "split": "train",
            "recipe": "as the data module reads them, 1 x 8 x 8",
            "count": len(real),
            "images_digest": digest,
            "digest": reference.digest(),
            "file": None,
        }
        assert found["lower_is_better"] is True
        jackknife = Jackknife(found["value"], tuple(found["replicates"]))
        assert found["interval"] == list(jackknife.interval())
    assert callback.metrics["frechet/tiny_features"]["rank_deficient"] is False
    assert "warning" not in callback.metrics["frechet/tiny_features"]
    json.dumps(callback.metrics, allow_nan=False)


def test_the_interval_leaves_out_groups_of_seeds(measured, module, features, data, real):
    """Group 0 by hand."""
    _, callback, _ = measured
    images = module.test_step((torch.arange(5, 35), data.y), 0)["images"]
    rest = features(to_pixels(images))["features"][groups_of(torch.arange(5, 35)) != 0]
    expected = frechet_distance(Moments.of(rest), Moments.of(real))
    replicates = callback.metrics["frechet/tiny_features"]["replicates"]
    assert len(replicates) == 20 and replicates[0] == pytest.approx(expected, rel=2e-3)


class Real(Generation):
    """Shows the real images in place of samples."""

    def test_step(self, batch, batch_idx):
        split = Digits().split("validation")
        images = torch.stack([split[int(i)][0] for i in batch[0]])
        denoised = torch.stack([images] * len(self.levels))
        return {"images": images, "denoised": denoised, "y": batch[1], "index": batch[0]}


def test_real_images_have_no_distance(runs, tmp_path):
    """By all that a named protocol measures; features on disk, and those of real images, too."""
    reference = Digits()
    count = len(reference.split("validation"))
    data = SeedData(count, 10, batch_size=50, reference=reference, reference_split="validation")
    path = str(runs / "classifier/classifier.safetensors")
    callback = Quality("classifier_features", path, batch_size=33)
    sampler = Ancestral(grid=ChainGrid(linear_levels(), "2"))
    module = Real(build(tiny.denoiser()), sampler)
    tiny.trainer(tmp_path, callback).test(module, datamodule=data, verbose=False)
    key = "classifier_features"
    found = {kind: callback.metrics[f"{kind}/{key}"] for kind in KINDS}
    assert found["frechet"]["value"] == pytest.approx(0, abs=1e-8)
    assert found["precision"]["value"] == found["recall"]["value"] == 1
    assert found["kid"]["value"] < 0  # an unbiased estimate, and each image meets itself
    assert {facts["n"] for facts in found.values()} == {count}
    values = callback.curves[f"frechet/{key}"][f"frechet/{key}"]
    assert values == pytest.approx([0] * len(values), abs=1e-8)


def test_reference_statistics_are_those_of_all_images(features, data, real):
    own = protocol("classifier_features")
    found = reference_of(data, own, features, 100)
    assert found.digest() == reference_of(data, own, features, 100).digest()
    assert reference_of(data, own_protocol(features), features, 100).activations == {}
    moments = Moments.of(real)
    torch.testing.assert_close(found.moments["features"].mean, moments.mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        found.moments["features"].covariance, moments.covariance, rtol=1e-4, atol=1e-6
    )
    table = found.activations["features"]
    assert places(len(real), own.activations) == set(range(1259))
    torch.testing.assert_close(table.block(0, 1259), real, rtol=1e-4, atol=1e-5)
    few = places(100_000, own.activations)
    assert len(few) == 10_000 and max(few) < 100_000
    assert max(few) > 99_000  # spread over all of them


def written(folder, features, count=40, name="tiny_features", identity=None):
    """A file of statistics."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, 1, 8, 8), generator=generator).to(torch.uint8)
    own = features(images)["features"]
    provenance, moments = Provenance("noise", count=count), {"features": Moments.of(own)}
    reference = Reference(name, identity or features.identity, provenance, moments, {})
    reference.save(folder / "reference.safetensors")
    return str(folder / "reference.safetensors")


def test_statistics_of_a_file_take_the_place_of_images(module, features, tmp_path):
    callback = Quality(extractor=features, reference=written(tmp_path, features), along=False)
    data = SeedData(count=30, num_classes=10, batch_size=30)
    before = module.evaluated.watching_seconds
    tiny.trainer(tmp_path, callback).test(module, datamodule=data, verbose=False)
    found = callback.metrics["frechet/tiny_features"]
    assert found["reference_n"] == 40 and found["reference"]["data"] == "noise"
    assert callback.curves == {} and module.evaluated.watching_seconds == before


def test_a_file_that_is_not_there_is_made_of_the_images_once(module, features, tmp_path):
    """And gives the numbers of the run that made it; other images are refused."""
    data = SeedData(count=30, num_classes=10, batch_size=30, reference=Digits())
    path = tmp_path / "kept/reference.safetensors"
    found, written_at = [], set()
    for _ in range(2):
        callback = Quality(extractor=features, reference=str(path), along=False)
        tiny.trainer(tmp_path, callback).test(module, datamodule=data, verbose=False)
        found.append(callback.metrics["frechet/tiny_features"])
        written_at.add(path.stat().st_mtime_ns)
    assert found[0] == found[1] and len(written_at) == 1
    assert found[0]["reference"]["recipe"] == "as the data module reads them, 1 x 8 x 8"
    other = SeedData(30, 10, batch_size=30, reference=Digits(), reference_split="test")
    with pytest.raises(ValueError, match=r"made of 1259 images of Digits, train.* has 359 images"):
        tiny.trainer(tmp_path, Quality(extractor=features, reference=str(path))).test(
            module, datamodule=other, verbose=False
        )


@pytest.mark.parametrize(
    ("reference", "images"), [("a.npz", Digits()), ("a.safetensors", None)], ids=["npz", "alone"]
)
def test_a_file_that_cannot_be_made_is_missed(module, features, tmp_path, reference, images):
    data = SeedData(count=4, num_classes=10, reference=images)
    with pytest.raises(FileNotFoundError, match=r"does not exist"):
        tiny.trainer(tmp_path, Quality(extractor=features, reference=reference)).test(
            module, datamodule=data, verbose=False
        )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": "other"}, r"by protocol 'tiny_features'.*was made by 'other'"),
        (
            {"identity": Identity("tiny_features", "0" * 16, "none")},
            r"come from tiny_features@.*'noise' from tiny_features@0000000000000000",
        ),
    ],
)
def test_statistics_of_something_else_are_refused_first(
    module, features, tmp_path, changed, message
):
    callback = Quality(extractor=features, reference=written(tmp_path, features, **changed))
    before = module.evaluated.images
    with pytest.raises(ValueError, match=message):
        tiny.trainer(tmp_path, callback).test(
            module, datamodule=SeedData(count=4, num_classes=10), verbose=False
        )
    assert module.evaluated.images == before  # before anything was sampled


def test_few_images_are_measured_with_a_warning(module, features, data, tmp_path):
    """n is not above the feature size; numbers that need more images are not known."""
    few = SeedData(count=10, num_classes=10, reference=Digits(), batch_size=10)
    callback = Quality(extractor=features)
    with pytest.warns(UserWarning, match=r"FD-10@tiny_features: 10 images.* the 16 features"):
        tiny.trainer(tmp_path, callback).test(module, datamodule=few, verbose=False)
    found = callback.metrics["frechet/tiny_features"]
    assert found["value"] > 0 and found["rank_deficient"] is True
    assert "no more than the 16 features" in found["warning"]


def test_a_number_that_cannot_be_told_costs_no_other(module, runs, data, tmp_path):
    callback = Quality(
        "classifier_features", str(runs / "classifier/classifier.safetensors"), along=False
    )
    with pytest.warns(UserWarning, match=r"KID-30@classifier_features: Got 30 samples"):
        tiny.trainer(tmp_path, callback).test(module, datamodule=data, verbose=False)
    found = {kind: callback.metrics[f"{kind}/classifier_features"]["value"] for kind in KINDS}
    assert found.pop("kid") is None and None not in found.values()


class Diverging(Denoiser):
    """No number for label 3, whose image would be black as bytes."""

    num_classes, shape = 10, (1, 8, 8)

    def predict(self, x, sigma, y):
        return Prediction(torch.where((y == 3)[:, None, None, None], float("nan"), 0.01 * x))


def test_sampling_that_diverged_has_no_quality(features, data, tmp_path):
    module = Generation(Diverging(), Heun(grid=RhoGrid(steps=2)), watched_steps=2)
    callback, grid = Quality(extractor=features), SampleGrid()
    with pytest.warns(UserWarning, match=r"3 of 30 images are not finite: sampling diverged"):
        tiny.trainer(tmp_path, callback, grid).test(module, datamodule=data, verbose=False)
    assert {found["value"] for found in callback.metrics.values()} == {None}
    assert callback.curves["frechet/tiny_features"]["frechet/tiny_features"] == [None, None]


def test_there_must_be_real_images(module, features, tmp_path):
    with pytest.raises(ValueError, match=r"No real images to compare with; set data\.reference"):
        tiny.trainer(tmp_path, Quality(extractor=features)).test(
            module, datamodule=SeedData(count=4, num_classes=10), verbose=False
        )


def test_names_of_protocols(runs, tmp_path, module):
    """A named one reads the network of a file; the judge of a class accuracy must not guide."""
    path = str(runs / "classifier/classifier.safetensors")
    with pytest.raises(ValueError, match=r"did you mean adm"):
        Quality("admm")
    with pytest.raises(ValueError, match="either the name of a protocol"):
        Quality()
    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors.* do not exist"):
        tiny.trainer(tmp_path, Quality("class-accuracy", "nowhere.safetensors")).test(
            module, datamodule=SeedData(count=4, num_classes=10), verbose=False
        )
    guide = {"plain": Scaled(ClassifierGuidance(load_classifier(path)), scale=1.0)}
    guided = Generation(module.denoiser, module.sampler, guide, "plain", watched_steps=2)
    with pytest.raises(ValueError, match=r"weights of the classifier that guides in term 'plain'"):
        tiny.trainer(tmp_path, Quality("class-accuracy", path)).test(
            guided, datamodule=SeedData(count=4, num_classes=10), verbose=False
        )
    callback, data = Quality("class-accuracy", path), SeedData(count=12, num_classes=10)
    tiny.trainer(tmp_path, callback).test(module, datamodule=data, verbose=False)
    pixels = to_pixels(module.generate((torch.arange(12), data.y))["images"])
    judge = load_classifier(path)
    with torch.no_grad():
        right = judge(pixels / 127.5 - 1, torch.zeros(12)).argmax(-1) == data.y
    assert callback.metrics["class_accuracy/class-accuracy"]["value"] == float(
        right.double().mean()
    )
    assert callback.curves == {}  # nothing of it is additive over features


def test_two_of_one_name(module, features, tmp_path):
    callbacks = [Quality(extractor=features) for _ in range(2)]
    with pytest.raises(ValueError, match=r"Two Quality callbacks measure 'tiny_features'"):
        tiny.trainer(tmp_path, *callbacks).test(
            module, datamodule=SeedData(count=4, num_classes=10), verbose=False
        )


def test_an_error_of_the_first_process_is_raised():
    """The others get the same one; here there is one process."""

    def fail():
        raise ValueError("broken")

    trainer = tiny.trainer(".")
    assert by_the_first(trainer, lambda: {"a": 1.0}) == {"a": 1.0}
    with pytest.raises(ValueError, match="broken"):
        by_the_first(trainer, fail)
