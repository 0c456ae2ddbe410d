"""Batched branches, intervals and compiled state against the plain loops, in float64."""

import math

import published
import pytest
import torch
from sampling import decibels
from torch import nn
from torch.testing import assert_close

from robustguide.checkpoints import load_classifier, load_denoiser
from robustguide.classifiers import Timed
from robustguide.denoisers import EpsDenoiser
from robustguide.guidance import ClassifierFree, ClassifierGuidance, Scaled, Within
from robustguide.nets import EncoderUNet, UNet
from robustguide.noise import ChainGrid, RhoGrid, linear_levels
from robustguide.samplers import Ancestral, Heun, SeededNoise

SIZES = dict(image_size=8, in_channels=1, model_channels=16, num_res_blocks=1)
LEVELS = linear_levels()
COUNT, CLASSES = 3, 4
INTERVAL = (0.3, 5.0)


def randomised(net):
    torch.manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    return net.double().eval().requires_grad_(False)


def networks():
    labels = dict(num_classes=CLASSES, num_null_labels=1)
    net = UNet(**SIZES, out_channels=1, attention_resolutions=[2], channel_mult=(1, 2), **labels)
    head = dict(out_channels=CLASSES, attention_resolutions=[2], channel_mult=(1, 2))
    return randomised(net), randomised(EncoderUNet(**SIZES, **head, pool="attention"))


class Counted(nn.Module):
    """Keeps how many rows it was asked for each time."""

    def __init__(self, net):
        super().__init__()
        self.net, self.rows = net, []

    def forward(self, x, t, y):
        self.rows.append(len(x))
        return self.net(x, t, y)


def sampled(denoiser, classifier, sampler):
    terms = {
        "free": Within(Scaled(ClassifierFree(), weight=2.5), *INTERVAL),
        "classifier": Scaled(ClassifierGuidance(classifier), scale=3.0),
    }
    noise, y = SeededNoise(range(COUNT)), torch.arange(COUNT)
    x = sampler.start(noise.draw(denoiser.shape), denoiser)
    return sampler(denoiser, terms, x, y, noise)


def ours(net, classifier, sampler):
    counted = Counted(net)
    denoiser = EpsDenoiser(counted, LEVELS, CLASSES, shape=(1, 8, 8), has_null=True)
    return sampled(denoiser, Timed(classifier, LEVELS, CLASSES), sampler), counted.rows


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("recomputes", [False, True])
def test_ancestral_is_the_plain_loop(recomputes, clip):
    net, classifier = networks()
    grid = ChainGrid(LEVELS, "20")
    made, rows = ours(net, classifier, Ancestral(grid, clip, "float64"))
    if recomputes:
        classifier = published.as_published(classifier)
    guide = published.Guide(net, classifier, CLASSES, 2.5, *INTERVAL, 3.0, clip)
    noise = SeededNoise(range(COUNT))
    steps = grid.indices()[::-1]
    want = published.ancestral(
        guide,
        noise.draw((1, 8, 8)).double(),
        torch.arange(COUNT),
        steps,
        LEVELS.alpha_bars.tolist(),
        noise,
    )
    assert_close(made, want, rtol=0, atol=1e-9)
    inside = [INTERVAL[0] < sigma <= INTERVAL[1] for sigma in grid.sigmas()[:-1]]
    assert 3 < sum(inside) < 17
    assert rows == [COUNT * (1 + each) for each in inside]  # one pass, of both where both are


@pytest.mark.parametrize("clip", [None, 1.0])
def test_heun_is_the_plain_loop(clip):
    net, classifier = networks()
    grid = RhoGrid(8, sigma_min=0.02, sigma_max=80.0)
    made, _ = ours(net, classifier, Heun(grid, clip, "float64"))
    guide = published.Guide(net, classifier, CLASSES, 2.5, *INTERVAL, 3.0, clip)
    noise, sigmas = SeededNoise(range(COUNT)), [LEVELS.snap(sigma) for sigma in grid.sigmas()]
    x = noise.draw((1, 8, 8)).double() * sigmas[0]
    want = published.heun(guide, x, torch.arange(COUNT), sigmas, LEVELS.t)
    assert_close(made, want, rtol=0, atol=1e-9)


EDM, CHAIN = RhoGrid(18, sigma_min=0.01, sigma_max=80.0), ChainGrid(LEVELS, "50")


@pytest.mark.parametrize(
    ("sampler", "least"),
    [
        (Heun(EDM, 1.0), 40.0),
        (Ancestral(CHAIN, 1.0), 40.0),
        (Heun(EDM), 35.0),
        (Ancestral(CHAIN), 28.0),
    ],
    ids=["heun", "ancestral", "heun, not clipped", "ancestral, not clipped"],
)
def test_bfloat16_makes_the_images_of_float32_with_networks_that_ship(sampler, least):
    denoiser = load_denoiser(card="fashion-mnist-denoiser")
    classifier = load_classifier(card="fashion-mnist-robust")
    exact = sampled(denoiser, classifier, sampler)
    with torch.autocast("cpu", torch.bfloat16):
        fast = sampled(denoiser, classifier, sampler)
    found = decibels(fast, exact, sampler.clip or math.inf)
    assert exact.clamp(-1, 1).std() > 0.3  # images, not a gray field
    assert found >= least
