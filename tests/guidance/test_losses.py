"""Losses of clean images."""

import pytest
import torch
from oracles import ExactClassifier, ExactDenoiser, Mixture, noisy, tilted
from PIL import Image
from torch.testing import assert_close

from robustguide.guidance import (
    ClassifierLoss,
    Descent,
    Guided,
    Loss,
    RawLogit,
    Scaled,
    SquaredDistance,
    Universal,
)
from robustguide.guidance.losses import values_and_gradient


def clean(mixture):
    return noisy(mixture, [0.0] * 4)


def write(path, values, mode="L"):
    """An image file with given bytes, (h, w) or (h, w, 3)."""
    image = Image.fromarray(torch.tensor(values, dtype=torch.uint8).numpy())
    image.convert(mode).save(path)
    return str(path)


def test_a_classifier_loses_its_cross_entropy():
    mixture = tilted()
    x, zero, y = clean(mixture)
    loss = ClassifierLoss(ExactClassifier(mixture))
    expected = -mixture.log_joint(x, zero).log_softmax(-1)[torch.arange(4), y]
    assert_close(loss(x, y), expected, rtol=1e-10, atol=1e-10)
    assert loss.num_classes == 4


def test_a_classifier_of_other_classes_and_another_objective():
    mixture = tilted()
    x, zero, _ = clean(mixture)
    loss = ClassifierLoss(ExactClassifier(mixture), labels=[3, 1], objective=RawLogit())
    y = torch.tensor([0, 1, 1, 0])
    raw = mixture.log_joint(x, zero)[torch.arange(4), torch.tensor([3, 1, 1, 3])]
    difference = loss(x, y) + raw  # a constant
    assert_close(difference, difference[:1].expand(4), rtol=1e-10, atol=1e-10)
    assert loss.num_classes == 2
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.3.*got \[4\]"):
        ClassifierLoss(ExactClassifier(mixture), labels=[4])


def test_a_colour_is_half_the_squared_distance():
    images = torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(0)).double()
    loss, y = SquaredDistance([0.5, -1.0]), torch.zeros(3, dtype=torch.long)
    colour = torch.tensor([0.5, -1.0], dtype=torch.float64).reshape(1, 2, 1, 1)
    assert_close(
        loss(images, y), 0.5 * ((images - colour) ** 2).sum((1, 2, 3)), rtol=1e-12, atol=0
    )
    values, gradient = values_and_gradient(loss, images.requires_grad_(), y)
    assert_close(gradient, (images - colour).detach(), rtol=1e-12, atol=1e-12)
    assert not values.requires_grad


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("1", 1), ("RGB", 3), ("P", 3)])
def test_an_image_is_the_target_where_the_mask_is_white(mode, channels, tmp_path):
    levels = [[0, 255, 0], [255, 255, 0]]
    target = write(tmp_path / "target.png", levels, mode)
    mask = write(tmp_path / "mask.png", [[255, 255, 0], [0, 51, 0]])
    loss = SquaredDistance(target, mask)
    images = torch.zeros(2, channels, 2, 3, dtype=torch.float64)
    images[1, 0, 0, 0], images[1, 0, 1, 2] = 1.0, 7.0  # 2 from the target; and not looked at
    half = 0.5 * channels * (1 + 1 + 0.2)
    expected = torch.tensor([half, half - 0.5 + 2], dtype=torch.float64)
    got = loss(images, torch.zeros(2, dtype=torch.long))
    assert_close(got, expected, rtol=1e-6, atol=0)  # the mask is float32


def test_inpainting_keeps_what_is_known_and_leaves_the_rest(tmp_path):
    target = write(tmp_path / "target.png", [[255, 0], [255, 0]])
    mask = write(tmp_path / "mask.png", [[255, 255], [0, 0]])
    denoiser = ExactDenoiser(tilted(shape=(1, 2, 2)))
    x, sigma, y = noisy(denoiser.mixture, [0.3, 1.0, 4.0])
    descent = Descent(1, lr=1.0, optimizer=torch.optim.SGD, bound=None)
    term = Universal(SquaredDistance(target, mask), backward=descent)
    got, plain = Guided(denoiser, {"paint": term})(x, sigma, y), denoiser(x, sigma, y)
    known = torch.tensor([1.0, -1.0], dtype=torch.float64).expand(3, 1, 2)
    assert_close(got[:, :, 0], known, rtol=0, atol=1e-12)
    assert_close(got[:, :, 1], plain[:, :, 1], rtol=0, atol=1e-12)


def test_files_that_do_not_fit_are_refused_with_the_denoiser(tmp_path):
    target = write(tmp_path / "target.png", [[255, 0], [255, 0]])
    tall = write(tmp_path / "tall.png", [[255, 0]] * 3)
    denoiser = ExactDenoiser(tilted(shape=(1, 2, 2)))
    descent = Descent(1)
    for loss, message in (
        (SquaredDistance(tall), "target is 1 x 3 x 2, the denoiser makes 1 x 2 x 2"),
        (SquaredDistance(target, tall), "mask is 1 x 3 x 2, the denoiser makes 1 x 2 x 2"),
        (SquaredDistance([0.0, 0.0, 1.0]), "target is 3 x 1 x 1, the denoiser makes 1 x 2 x 2"),
    ):
        term = Universal(loss, backward=descent)
        for held in (term, Scaled(term, 1.0)):
            with pytest.raises(ValueError, match=message):
                Guided(denoiser, {"term": held})
    Guided(denoiser, {"term": Universal(SquaredDistance(target, target), backward=descent)})
    with pytest.raises(FileNotFoundError, match=r"missing\.png does not exist"):
        SquaredDistance("missing.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=r"Cannot read the image .*text\.png"):
        SquaredDistance([0.0], str(tmp_path / "text.png"))
    Image.new("I;16", (2, 2)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match="more than 8 bits"):
        SquaredDistance(str(tmp_path / "deep.png"))
    for values in ([], [2.0], [float("nan")]):
        with pytest.raises(ValueError, match="a value in"):
            SquaredDistance(values)


class Mean(Loss):
    """Mixes the rows."""

    def forward(self, images, y):
        return images.square().mean()


def test_a_loss_that_is_one_number_for_all_images_is_refused():
    denoiser = ExactDenoiser(Mixture(torch.zeros(1, 1, 1, 2)))
    x, sigma, y = noisy(denoiser.mixture, [0.3, 1.0])
    term = Universal(Mean(), backward=Descent(1))
    with pytest.raises(ValueError, match=r"Mean must answer one loss for each of the 2 images"):
        Guided(denoiser, {"term": term})(x, sigma, y)
