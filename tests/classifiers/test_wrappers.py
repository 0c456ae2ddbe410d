"""Classifiers of classifiers: sizes, spaces and classes."""

import pytest
import torch
from oracles import ExactClassifier, noisy, tilted
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from robustguide.classifiers import Decoded, OffTheShelf, Relabelled, Resized, Smooth, Timed
from robustguide.interfaces import Classifier, Codec
from robustguide.noise import linear_levels


class Told(Classifier):
    """Keeps what it was shown."""

    conditioning = "t"

    def __init__(self, shape=(3, 4, 4), num_classes=2):
        super().__init__()
        self.shape, self.num_classes = shape, num_classes

    def forward(self, x, sigma):
        self.x, self.sigma = x, sigma
        return x.flatten(1)[:, : self.num_classes]


class Doubling(Codec):
    """Latents of one channel, whose images are twice as large in three."""

    image_channels, channels, factor = 3, 1, 2

    def encode(self, images, noise=None):
        return F.avg_pool2d(images.mean(1, keepdim=True), 2)

    def decode(self, x_0):
        return x_0.repeat(1, 3, 1, 1).repeat_interleave(2, -1).repeat_interleave(2, -2)


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_whole_factors_keep_noise_white_at_the_level_that_is_told():
    """Averaging is linear: as a matrix its square is the identity over the factor squared."""
    told = Told(shape=(1, 2, 2))
    unit = torch.eye(36).reshape(36, 1, 6, 6)  # an image with noise in a single pixel, each
    Resized(told)(unit, torch.full((36,), 0.9))
    matrix = told.x.flatten(1)
    assert_close(matrix.T @ matrix, torch.eye(4) / 9)
    assert_close(told.sigma, torch.full((36,), 0.3))


def test_a_noisy_classifier_of_small_images_reads_large_ones():
    """The exact classifier of averaged images, in closed form, at the level of the average."""
    mixture = tilted(shape=(1, 2, 2))
    x, sigma, _ = noisy(mixture, [0.3, 2.0, 10.0], dtype=torch.float32)
    large = x.repeat_interleave(2, -1).repeat_interleave(2, -2)
    exact = ExactClassifier(mixture)
    exact.shape = (1, 2, 2)
    assert_close(Resized(exact)(large, 2 * sigma), exact(x, sigma))


@pytest.mark.parametrize("side", [3, 4, 5, 7])
def test_other_sizes_are_interpolated(side):
    told, x, sigma = Told(), noise(2, 3, side, side), torch.tensor([0.1, 2.0])
    Resized(told)(x, sigma)
    assert told.x.shape == (2, 3, 4, 4) and torch.equal(told.sigma, sigma)
    want = F.interpolate(x, (4, 4), mode="bilinear", antialias=True)
    assert_close(told.x, want)
    assert side != 4 or torch.equal(told.x, x)


def test_a_size_is_asked_for_or_given():
    unknown = Told(shape=None)
    with pytest.raises(ValueError, match="the classifier says None; give `size`"):
        Resized(unknown)
    with pytest.raises(ValueError, match="got 0"):
        Resized(Told(), size=0)
    assert Resized(unknown, size=2).sides == (2, 2)
    resized = Resized(Told())
    assert resized.reads((3, 17, 9)) and not resized.reads((1, 4, 4))
    assert not Resized(Told(), size=5).reads((3, 8, 8))
    assert (resized.shape, resized.num_classes, resized.conditioning) == ((3, 4, 4), 2, "t")


def test_gradients_flow_through_a_resized_classifier():
    x = noise(1, 3, 8, 8).requires_grad_()
    (gradient,) = torch.autograd.grad(Resized(Told())(x, torch.zeros(1)).sum(), x)
    want = torch.zeros(1, 3, 8, 8)
    want[0, 0, :2, :4] = 0.25  # two logits, each the mean of four pixels
    assert_close(gradient, want)


def test_a_classifier_of_images_reads_latents():
    told, latents = Told(), noise(2, 1, 2, 2).requires_grad_()
    decoded = Decoded(told, Doubling())
    logits = decoded(latents, torch.tensor([0.0, 1.0]))
    assert torch.equal(told.x, Doubling().decode(latents))
    assert told.sigma.tolist() == [0.0, 1.0]
    (gradient,) = torch.autograd.grad(logits.sum(), latents)
    want = torch.zeros(2, 1, 2, 2)
    want[:, 0, 0, 0] = 2  # the two first pixels are of the first latent
    assert_close(gradient, want)
    assert decoded.shape == (1, 2, 2) and decoded.num_classes == 2


def test_which_latents_are_read():
    decoded = Decoded(Told(), Doubling())
    assert decoded.reads((1, 2, 2))
    assert not decoded.reads((1, 4, 4)) and not decoded.reads((3, 2, 2))
    assert Decoded(Resized(Told()), Doubling()).reads((1, 16, 16))
    assert Decoded(Told(shape=None), Doubling()).shape is None
    grey = Decoded(OffTheShelf(nn.Flatten(), 3, [0.5], [0.5]), Doubling())
    assert grey.reads((1, 5, 5)) and not grey.reads((2, 5, 5))


def test_classes_in_another_order():
    told = Told(num_classes=4)
    x = noise(3, 3, 4, 4)
    all_logits = told(x, torch.zeros(3))
    relabelled = Relabelled(told, [2, 0, 2])
    assert torch.equal(relabelled(x, torch.zeros(3)), all_logits[:, [2, 0, 2]])
    assert relabelled.num_classes == 3 and relabelled.reads((3, 4, 4))
    assert not relabelled.reads((3, 5, 5)) and "labels" not in relabelled.state_dict()


@pytest.mark.parametrize("labels", [[], [0, 2], [-1]])
def test_classes_that_are_not_there(labels):
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.1"):
        Relabelled(Told(), labels)


def test_wrappers_of_wrappers():
    """Each asks the next one: an image network on latents of any size."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16, 5))
    shelf = OffTheShelf(net, 5, [0.5] * 3, [0.5] * 3, shape=[3, 4, 4])
    whole = Relabelled(Decoded(Resized(shelf), Doubling()), [4, 1])
    assert whole.reads((1, 8, 8)) and not whole.reads((3, 8, 8))
    x = noise(2, 1, 8, 8)
    images = F.avg_pool2d(Doubling().decode(x), 4)
    assert_close(whole(x, torch.zeros(2)), net(images)[:, [4, 1]])


def test_a_timed_classifier_is_told_the_level_of_what_it_is_shown():
    seen = []

    class Net(nn.Module):
        image_size, in_channels = 4, 3

        def forward(self, x_t, t):
            seen.append((x_t, t))
            return x_t.flatten(1)

    levels = linear_levels()
    timed = Timed(Net(), levels, 48)
    level = float(levels.sigmas[300])
    Resized(timed)(noise(1, 3, 8, 8), torch.tensor([2 * level], dtype=torch.float64))
    assert timed.shape == (3, 4, 4) and seen[0][1].item() == 300
    assert_close(
        seen[0][0].double(),
        F.avg_pool2d(noise(1, 3, 8, 8), 2).double() / (1 + level**2) ** 0.5,
        rtol=1e-6,
        atol=1e-6,
    )


class Levelled(Told):
    """Answers with the level that it is told, so that a road on which it is lost shows."""

    def forward(self, x, sigma):
        return torch.stack([sigma, -sigma], 1)

    def as_clean(self, images, sigma):
        return torch.stack([10 * sigma, 20 * sigma], 1)


WRAPPERS = {
    "resized": (lambda inner: Resized(inner), (3, 8, 8), 0.5),  # averaged over 2 x 2 pixels
    "resized_otherwise": (lambda inner: Resized(inner), (3, 6, 6), 1.0),
    "decoded": (lambda inner: Decoded(inner, Doubling()), (1, 2, 2), 1.0),
    "relabelled": (lambda inner: Relabelled(inner, [0, 1]), (3, 4, 4), 1.0),
    "smooth": (lambda inner: Smooth(inner, torch.inf), (3, 4, 4), 1.0),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_the_level_of_an_image_read_as_clean_goes_through_wrappers(name):
    """A classifier inside, which corrects its logits by the level, still learns of it."""
    wrap, shape, factor = WRAPPERS[name]
    inner = Levelled()
    inner.relu = nn.ReLU()
    sigma = torch.tensor([0.5, 3.0])
    wrapped = wrap(inner)
    told = factor * sigma
    assert_close(wrapped(noise(2, *shape), sigma), torch.stack([told, -told], 1))
    assert_close(wrapped.as_clean(noise(2, *shape), sigma), torch.stack([10 * told, 20 * told], 1))


def test_a_classifier_that_says_nothing_of_clean_images_is_told_level_zero():
    told = Told()
    told.as_clean(noise(2, 3, 4, 4), torch.tensor([0.5, 3.0]))
    assert told.sigma.tolist() == [0.0, 0.0]
