import pytest
import tiny
import torch

from robustguide import load_classifier, load_denoiser
from robustguide.callbacks import FrechetOfSamples
from robustguide.checkpoints import build
from robustguide.data import Digits, SeedData
from robustguide.metrics import ClassifierFeatures, Moments, frechet_distance
from robustguide.modules import Generation
from robustguide.noise import ChainGrid, linear_levels
from robustguide.samplers import Ancestral


@pytest.fixture(scope="module")
def module(runs):
    denoiser = load_denoiser(str(runs / "denoiser/denoiser.safetensors"))
    sampler = Ancestral(grid=ChainGrid(linear_levels(), "8"), clip=None)
    return Generation(denoiser, sampler, watched_steps=3)


@pytest.fixture(scope="module")
def features(runs):
    network = load_classifier(str(runs / "classifier/classifier.safetensors"))
    return ClassifierFeatures(network, "tiny_features")


def test_it_is_the_distance_of_all_images(module, features, tmp_path):
    """Of the last images and of the clamped predictions on the way, from all reference images."""
    callback = FrechetOfSamples(features, batch_size=100)
    data = SeedData(count=30, num_classes=10, batch_size=8, reference=Digits())
    (logged,) = tiny.trainer(tmp_path, callback).test(module, datamodule=data, verbose=False)
    answer = module.test_step((torch.arange(30), data.y), 0)
    real = torch.stack([data.reference[row][0] for row in range(len(data.reference))])
    reference = Moments.of(features(real), features.identity)

    def distance(images):
        return frechet_distance(
            Moments.of(features(images), features.identity), reference
        ).distance

    # batches of 8 and of 30 round differently, and the square root of small eigenvalues magnifies
    found = callback.metrics["frechet/tiny_features"]
    assert found["value"] == pytest.approx(distance(answer["images"]), rel=1e-4)
    assert logged["test/frechet/tiny_features"] == pytest.approx(found["value"], rel=1e-6)
    assert (found["n"], found["reference_n"]) == (30, len(real))
    assert found["extractor"] == features.identity and found["rank_deficient"] is False
    curve = callback.curves["frechet"]
    assert curve["sigma"] == list(module.levels)
    for value, denoised in zip(curve["frechet/tiny_features"], answer["denoised"], strict=True):
        assert value == pytest.approx(distance(denoised.clamp(-1, 1)), rel=1e-4)
    assert (tmp_path / "test_frechet_by_noise.png").is_file()


def test_real_images_have_no_distance(features, tmp_path):
    callback = FrechetOfSamples(features)
    reference = Digits()

    class Real(Generation):
        def test_step(self, batch, batch_idx):
            images = torch.stack([split[int(i)][0] for i in batch[0]])
            return {"images": images, "denoised": torch.stack([images] * len(self.levels))}

    split = reference.split("validation")
    data = SeedData(
        count=len(split), num_classes=10, reference=reference, reference_split="validation"
    )
    sampler = Ancestral(grid=ChainGrid(linear_levels(), "2"))
    module = Real(build(tiny.denoiser()), sampler)
    tiny.trainer(tmp_path, callback).test(module, datamodule=data, verbose=False)
    assert callback.metrics["frechet/tiny_features"]["value"] == pytest.approx(0, abs=1e-5)
    values = callback.curves["frechet"]["frechet/tiny_features"]
    assert values == pytest.approx([0] * len(values), abs=1e-5)


def test_moments_of_a_file_take_the_place_of_images(module, features, tmp_path):
    images = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    Moments.of(features(images), features.identity).save(tmp_path / "moments.safetensors")
    callback = FrechetOfSamples(features, reference=str(tmp_path / "moments.safetensors"))
    data = SeedData(count=4, num_classes=10)
    tiny.trainer(tmp_path, callback).test(module, datamodule=data, verbose=False)
    found = callback.metrics["frechet/tiny_features"]
    assert found["reference_n"] == 40 and found["rank_deficient"] is True


def test_moments_of_another_extractor(module, features, tmp_path):
    Moments.of(torch.randn(9, 16), "another").save(tmp_path / "moments.safetensors")
    callback = FrechetOfSamples(features, reference=str(tmp_path / "moments.safetensors"))
    with pytest.raises(
        ValueError, match=r"'tiny_features@.*from 'another'; compute the reference"
    ):
        tiny.trainer(tmp_path, callback).test(
            module, datamodule=SeedData(count=4, num_classes=10), verbose=False
        )


def test_there_must_be_real_images(module, features, tmp_path):
    with pytest.raises(ValueError, match=r"No real images to compare with; set data\.reference"):
        tiny.trainer(tmp_path, FrechetOfSamples(features)).test(
            module, datamodule=SeedData(count=4, num_classes=10), verbose=False
        )
