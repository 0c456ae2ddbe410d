"""Networks that ship with the package: they load by their cards, and are what the cards say."""

import pytest
import torch

from robustguide.attacks import PGD
from robustguide.cards import card, cards, present
from robustguide.cards.catalogue import SHIPPED
from robustguide.checkpoints import load_classifier, load_denoiser
from robustguide.data import FashionMNIST, Images
from robustguide.noise import perturb
from robustguide.specification import differences

KINDS = {
    "denoisers": ("denoiser", "weak"),
    "classifiers": ("features", "judge", "plain", "robust", "robust-judge", "clean"),
}
NAMES = {f"fashion-mnist-{name}" for names in KINDS.values() for name in names}


def test_every_file_has_a_card_and_is_built_as_it_says(tmp_path):
    names = {path.stem for path in SHIPPED.glob("*.safetensors")}
    assert names == {name for name in cards() if name.startswith("fashion-mnist-")} == NAMES
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 8e6
    for name in names:
        of = card(name)
        assert present(of, tmp_path) == SHIPPED / of.file
        load = load_denoiser if of.kind == "denoiser" else load_classifier
        module = load(card=name)
        found = differences(module.metadata.specification, of.specification)
        # the card leaves out what is the default
        assert [line for line in found if not line.endswith("given (its default)")] == []
        assert module.metadata.class_names[9] == "Ankle boot"
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
