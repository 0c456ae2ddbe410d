"""Networks made for clean images."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from robustguide.classifiers import NoiseConditioned, OffTheShelf
from robustguide.noise import linear_levels


class Small(nn.Module):
    """A convolution, a hidden layer and logits; `seen` is what came in."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(8, 5)
        self.broken = False

    def forward(self, images):
        self.seen = images
        hidden = F.relu(self.conv(images)).mean((2, 3))
        if self.broken:
            raise RuntimeError("broken")
        return self.head(hidden)


def images_and_levels(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, 8, 8, generator=generator, dtype=dtype)
    return x, torch.tensor([0.0, 0.5, math.sqrt(3), 20.0], dtype=dtype)


def conditioned(layers):
    torch.manual_seed(0)
    return NoiseConditioned(OffTheShelf(Small(), 5), linear_levels(), layers, width=16)


def test_the_network_sees_standardised_images_at_unit_variance():
    net = Small()
    x, sigma = images_and_levels()
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.25, 2.0]
    OffTheShelf(net, 5, mean, std)(x, sigma)
    for row, factor in ((0, 1.0), (2, 0.5)):  # sqrt(1 + 0) and sqrt(1 + 3)
        for channel in range(3):
            want = ((x[row, channel] * factor + 1) / 2 - mean[channel]) / std[channel]
            assert_close(net.seen[row, channel], want, rtol=1e-5, atol=1e-6)


def test_images_of_another_size_are_resized():
    net, (x, sigma) = Small(), images_and_levels()
    constant = torch.full_like(x, 0.25)
    classifier = OffTheShelf(net, 5, [0.0] * 3, [1.0] * 3, size=12)
    classifier(constant, torch.zeros_like(sigma))
    assert_close(net.seen, torch.full((4, 3, 12, 12), 0.625))
    classifier(constant.new_zeros(4, 3, 20, 12), sigma)  # one side fits already
    assert net.seen.shape == (4, 3, 12, 12)
    ramp = torch.linspace(-1, 1, 8).expand(4, 3, 8, 8)
    OffTheShelf(net, 5, [0.0] * 3, [1.0] * 3, size=4)(ramp, torch.zeros_like(sigma))
    assert_close(net.seen.diff()[..., 1:2], torch.full((4, 3, 4, 1), 2 / 7), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ([0.5], [0.5, 0.5]),
        ([0.5], [0.0]),
        ([0.5], [-1.0]),
        ([0.5], [math.nan]),
        ([0.5], [math.inf]),
        ([math.nan], [0.5]),
    ],
)
def test_statistics_that_cannot_be_are_refused(mean, std):
    with pytest.raises(ValueError, match="std positive"):
        OffTheShelf(Small(), 5, mean, std)


def test_a_conditioned_classifier_starts_as_what_it_was():
    classifier = conditioned({"net.conv": 8, "net.head": 5})
    x, sigma = images_and_levels()
    assert torch.equal(classifier(x, sigma), classifier.classifier(x, sigma))
    assert classifier.num_classes == 5


def test_a_conditioned_classifier_learns_to_tell_the_levels_apart():
    """The same image at t = 0 and at t = 999 gets the two classes that are asked for."""
    classifier = conditioned({"net.conv": 8})
    sigma = torch.tensor([0.0, 1e3])
    x = torch.ones(2, 3, 8, 8) * (1 + sigma**2).sqrt().reshape(-1, 1, 1, 1)  # the same x_t
    y = torch.tensor([0, 1])
    optimizer = torch.optim.Adam(classifier.parameters(), lr=0.01)
    for _ in range(60):
        loss = F.cross_entropy(classifier(x, sigma), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < math.log(2) / 2  # log 2 is the least for a classifier that cannot tell


def test_the_shift_is_added_to_the_channels_of_its_layer():
    classifier = conditioned({"net.head": 5})
    x, sigma = images_and_levels()
    before = classifier.classifier(x, sigma)
    nn.init.constant_(classifier.shifts["net/head"].bias, 0.5)
    assert_close(classifier(x, sigma), before + 0.5)


def test_nothing_is_left_on_the_layers_even_after_an_error():
    classifier = conditioned({"net.conv": 8})
    x, sigma = images_and_levels()
    conv = classifier.classifier.net.conv
    classifier(x, sigma)
    assert not conv._forward_hooks
    classifier.classifier.net.broken = True
    with pytest.raises(RuntimeError, match="broken"):
        classifier(x, sigma)
    assert not conv._forward_hooks


def test_a_layer_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(ValueError, match=r"no layer 'net.layer1'.*net\.conv, net\.head"):
        conditioned({"net.layer1": 8})


def test_what_range_the_network_reads_is_a_mean_and_a_deviation():
    """[0, 1] as it is, [-1, 1] as it is, and clamped before it is standardised."""
    x = torch.tensor([-3.0, -1.0, 0.5, 1.0, 1.5]).expand(1, 3, 1, 5)
    for mean, std, clamp, want in [
        (0.0, 1.0, False, [-1.0, 0.0, 0.75, 1.0, 1.25]),
        (0.5, 0.5, False, [-3.0, -1.0, 0.5, 1.0, 1.5]),
        (0.5, 0.5, True, [-1.0, -1.0, 0.5, 1.0, 1.0]),
        (0.25, 0.5, True, [-0.5, -0.5, 1.0, 1.5, 1.5]),
    ]:
        shelf = OffTheShelf(nn.Identity(), 3, [mean] * 3, [std] * 3, clamp=clamp)
        assert_close(shelf.prepared(x), torch.tensor(want).expand(1, 3, 1, 5))


def test_what_is_resized_is_clamped_afterwards():
    """A cubic kernel overshoots an edge."""
    edge = torch.ones(1, 3, 4, 12)
    edge[..., 6:] = -1
    arguments = {"mean": [0.0] * 3, "std": [1.0] * 3, "size": 8, "interpolation": "bicubic"}
    free = OffTheShelf(nn.Identity(), 3, **arguments).prepared(edge)
    clamped = OffTheShelf(nn.Identity(), 3, **arguments, clamp=True).prepared(edge)
    assert free.max() > 1.005 and free.min() < -0.005
    assert torch.equal(clamped, free.clamp(0, 1))


@pytest.mark.parametrize(
    ("given", "shape", "yes", "no"),
    [
        ({}, None, [(3, 9, 9), (1, 5, 5)], [(4, 9, 9)]),
        ({"size": 24}, (3, 24, 24), [(3, 9, 9), (1, 5, 5)], [(4, 24, 24)]),
        ({"shape": [3, 9, 9]}, (3, 9, 9), [(3, 9, 9), (1, 9, 9)], [(3, 8, 9), (4, 9, 9)]),
        ({"mean": [0.5], "std": [0.5]}, None, [(7, 9, 9)], []),
        ({"mean": [0.5], "std": [0.5], "size": 8}, None, [(7, 9, 9)], []),
    ],
    ids=["free", "resizing", "fixed", "any channels", "any channels resized"],
)
def test_which_images_are_read(given, shape, yes, no):
    shelf = OffTheShelf(Small(), 5, **given)
    assert shelf.shape == shape
    assert all(map(shelf.reads, yes)) and not any(map(shelf.reads, no))
    conditioned = NoiseConditioned(shelf, linear_levels(), {"net.conv": 8})
    assert conditioned.shape == shape
    assert all(map(conditioned.reads, yes)) and not any(map(conditioned.reads, no))


def test_grey_images_are_shown_in_all_channels():
    net, x = Small(), torch.rand(2, 1, 8, 8)
    shelf = OffTheShelf(net, 5)
    shelf(x, torch.zeros(2))
    seen = net.seen
    shelf(x.repeat(1, 3, 1, 1), torch.zeros(2))
    assert torch.equal(seen, net.seen)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": 0}, "at least 1"),
        ({"size": 8, "shape": [3, 8, 8]}, "Give one of them"),
        ({"shape": [3, 8]}, "three positive integers"),
        ({"shape": [3, 8, -8]}, "three positive integers"),
    ],
)
def test_sizes_that_cannot_be(given, message):
    with pytest.raises(ValueError, match=message):
        OffTheShelf(Small(), 5, **given)
