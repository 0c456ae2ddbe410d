"""Networks that ship with the package: they load by their cards, and are what the cards say."""

import torch

from robustguide.cards import card, present
from robustguide.cards.catalogue import SHIPPED
from robustguide.checkpoints import load_classifier, load_denoiser
from robustguide.data import FashionMNIST, Images
from robustguide.noise import expand
from robustguide.specification import differences


def test_every_file_has_a_card_and_is_built_as_it_says(tmp_path):
    names = {path.stem for path in SHIPPED.glob("*.safetensors")}
    assert names == {"fashion-mnist-denoiser", "fashion-mnist-features"}
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


def test_they_are_trained():
    images, y, _ = next(iter(Images(FashionMNIST(size=32), batch_size=200).test_dataloader()))
    sigma = torch.full((len(images),), 0.5)
    generator = torch.Generator().manual_seed(0)
    x = images + expand(sigma, images) * torch.randn(images.shape, generator=generator)
    with torch.no_grad():
        denoised = load_denoiser(card="fashion-mnist-denoiser")(x, sigma, y)
        low = load_classifier(card="fashion-mnist-features")(images, torch.full_like(sigma, 0.1))
    assert (denoised - images).square().mean() < 0.1 * (x - images).square().mean()
    assert (low.argmax(-1) == y).float().mean() > 0.8
