"""Networks that ship with the package: they load by their cards, and are what the cards say."""

import pytest
import torch

from robustguide.attacks import PGD
from robustguide.cards import card, cards, present
from robustguide.cards.catalogue import SHIPPED
from robustguide.checkpoints import load_classifier, load_codec, load_denoiser
from robustguide.data import FashionMNIST, Images
from robustguide.noise import perturb
from robustguide.specification import differences

KINDS = {
    "denoisers": ("denoiser", "weak"),
    "classifiers": ("features", "judge", "plain", "robust", "robust-judge", "clean"),
    "latents": ("autoencoder", "latent-dit"),
}
NAMES = {f"fashion-mnist-{name}" for names in KINDS.values() for name in names}
LOADERS = {"denoiser": load_denoiser, "classifier": load_classifier, "codec": load_codec}


def test_every_file_has_a_card_and_is_built_as_it_says(tmp_path):
    names = {path.stem for path in SHIPPED.glob("*.safetensors")}
    assert names == {name for name in cards() if name.startswith("fashion-mnist-")} == NAMES
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 8e6
    for name in names:
        of = card(name)
        assert present(of, tmp_path) == SHIPPED / of.file
        module = LOADERS[of.kind](card=name)
        found = differences(module.metadata.specification, of.specification)
        # the card leaves out what is the default
        assert [line for line in found if not line.endswith("given (its default)")] == []
        assert module.metadata.class_names[9:] == (("Ankle boot",) if of.num_classes else ())
        assert (module.metadata.shape, module.metadata.weights) == (of.shape, of.weights)
        assert sum(p.numel() for p in module.parameters()) == of.parameters


def test_a_file_in_the_folder_of_checkpoints_comes_first(tmp_path):
    of = card("fashion-mnist-denoiser")
    (tmp_path / of.file).touch()
    assert present(of, tmp_path) == tmp_path / of.file


@pytest.fixture(scope="module")
def noisy():
    """Test images at sigma 0.5, the clean ones, their labels and level."""
    images, y, _ = next(iter(Images(FashionMNIST(size=32), batch_size=200).test_dataloader()))
    sigma = torch.full((len(images),), 0.5)
    generator = torch.Generator().manual_seed(0)
    return perturb(images, sigma, torch.randn(images.shape, generator=generator)), images, y, sigma


@pytest.mark.parametrize("name", KINDS["denoisers"])
def test_denoisers_take_most_of_the_noise_away(name, noisy):
    x, images, y, sigma = noisy
    with torch.no_grad():
        denoised = load_denoiser(card=f"fashion-mnist-{name}")(x, sigma, y)
    bound = {"denoiser": 0.1, "weak": 0.25}[name]
    assert (denoised - images).square().mean() < bound * (x - images).square().mean()


@pytest.mark.parametrize("name", KINDS["classifiers"])
def test_classifiers_know_clean_images_and_those_of_noise_the_noisy_ones(name, noisy):
    x, images, y, sigma = noisy
    classifier = load_classifier(card=f"fashion-mnist-{name}")
    with torch.no_grad():
        clean = classifier(images, torch.full_like(sigma, 0.05)).argmax(-1) == y
        found = classifier(x, sigma).argmax(-1) == y
    assert clean.float().mean() > 0.75
    if name in ("plain", "robust", "robust-judge"):
        assert found.float().mean() > 0.6


def test_the_robust_ones_stand_an_attack_that_the_plain_one_does_not(noisy):
    x, _, y, sigma = noisy
    attack = PGD(2.0, steps=10)
    right = {}
    for name in ("plain", "robust", "robust-judge"):
        classifier = load_classifier(card=f"fashion-mnist-{name}")
        moved = attack(classifier, x, sigma, y)
        with torch.no_grad():
            right[name] = float((classifier(moved, sigma).argmax(-1) == y).float().mean())
    assert min(right["robust"], right["robust-judge"]) > right["plain"] + 0.1


@pytest.fixture(scope="module")
def latents(noisy):
    """The codec, drawn latents of the clean test images, and unit noise of their shape."""
    _, images, *_ = noisy
    codec, generator = load_codec(card="fashion-mnist-autoencoder"), torch.Generator()
    draw, noise = torch.randn(2, len(images), 4, 8, 8, generator=generator.manual_seed(1))
    with torch.no_grad():
        return codec, codec.encode(images, draw), noise


def test_the_autoencoder_keeps_what_images_show(noisy, latents):
    _, images, y, sigma = noisy
    codec, x_0, _ = latents
    std, mean = torch.std_mean(x_0, (0, 2, 3))
    torch.testing.assert_close(mean, torch.zeros(4), rtol=0, atol=0.1)
    torch.testing.assert_close(std, torch.ones(4), rtol=0, atol=0.1)
    judge = load_classifier(card="fashion-mnist-judge")
    with torch.no_grad():
        decoded = codec.decode(x_0)
        right = [judge.as_clean(each, sigma).argmax(-1) == y for each in (images, decoded)]
    assert decoded.shape == images.shape and (decoded - images).abs().mean() < 0.065
    assert right[1].float().mean() > right[0].float().mean() - 0.03


def test_the_transformer_denoises_latents_and_heeds_labels(latents, noisy):
    """Against x / (1 + sigma^2), the best that knows only that latents have unit scale."""
    *_, y, _ = noisy
    _, x_0, noise = latents
    denoiser, error = load_denoiser(card="fashion-mnist-latent-dit"), {}
    for level in (0.5, 4.0):
        sigma = torch.full((len(y),), level)
        x = perturb(x_0, sigma, noise)
        with torch.no_grad():
            found = {
                "own": denoiser(x, sigma, y),
                "null": denoiser(x, sigma, denoiser.null(y)),
                "linear": x / (1 + level**2),
            }
        for name, denoised in found.items():
            error[name, level] = float((denoised - x_0).square().mean())
    assert error["own", 0.5] < 0.75 * error["linear", 0.5], error
    assert error["own", 4.0] < 0.75 * error["linear", 4.0], error
    assert error["own", 4.0] < 0.9 * error["null", 4.0], error
