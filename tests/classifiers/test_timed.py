"""Classifiers that are told the noise level."""

import math

import pytest
import torch
from oracles import noisy, tilted
from torch import nn
from torch.testing import assert_close

from robustguide.classifiers import OffTheShelf, SigmaConditioned, Timed
from robustguide.nets import MLP, EncoderUNet
from robustguide.noise import ContinuousLevels, cosine_levels, expand, linear_levels


class ChainClassifier(nn.Module):
    """The exact classifier of a mixture, written in the units of the chain."""

    def __init__(self, mixture, levels):
        super().__init__()
        self.mixture, self.alpha_bars = mixture, torch.tensor(levels.alpha_bars)

    def forward(self, x_t, t):
        alpha_bar = self.alpha_bars[t.long()].reshape(-1, 1, 1)
        offset = x_t.flatten(1)[:, None] - alpha_bar.sqrt() * self.mixture.means.flatten(1)
        covariance = alpha_bar[..., None] * self.mixture.covariances
        covariance = covariance + (1 - alpha_bar[..., None]) * torch.eye(covariance.shape[-1])
        solved = torch.linalg.solve(covariance, offset[..., None])[..., 0]
        return self.mixture.priors.log() - 0.5 * ((offset * solved).sum(-1) + covariance.logdet())


def test_the_gradient_gains_the_factor_between_the_units():
    """In the chain's units the gradient is that of x_t; ours is shorter by sqrt(1 + sigma**2)."""
    mixture, levels = tilted(), linear_levels()
    x, sigma, y = noisy(mixture, levels.sigmas[[0, 40, 400, 800]].tolist())
    x.requires_grad_()
    classifier = Timed(ChainClassifier(mixture, levels), levels, len(mixture))
    log_p = classifier(x, sigma).log_softmax(-1).gather(-1, y[:, None])
    (gradient,) = torch.autograd.grad(log_p.sum(), x)
    with torch.no_grad():
        null = torch.full_like(y, len(mixture))
        want = mixture.score(x, sigma, y) - mixture.score(x, sigma, null)
        posterior = mixture.log_joint(x, sigma).softmax(-1)
    assert_close(classifier(x, sigma).softmax(-1), posterior)
    assert_close(gradient, want, rtol=1e-8, atol=1e-10)


class Recorder(nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.unit = nn.Parameter(torch.ones(1, dtype=dtype))

    def forward(self, x, *told):
        self.x, self.told = x, told
        return x.flatten(1) * self.unit


def test_edm_networks_see_unit_variance_and_a_quarter_of_log_sigma():
    net = Recorder()
    x, sigma, _ = noisy(tilted(), [0.0, 0.002, 0.5, 80.0])
    SigmaConditioned(net, 4)(x, sigma)
    scale = (sigma**2 + 0.25).sqrt()
    assert_close(net.x, (x / expand(scale, x)).float())
    told = torch.tensor([0.002, 0.002, 0.5, 80.0]).log() / 4  # no noise is told as the least
    assert_close(net.told[0], told)


@pytest.mark.parametrize(
    ("wrap", "dtype"),
    [
        (lambda net: Timed(net, linear_levels(), 4), torch.float32),
        (lambda net: SigmaConditioned(net, 4), torch.bfloat16),
        (lambda net: OffTheShelf(net, 4, mean=[0.5], std=[0.5]), torch.float32),
    ],
)
def test_a_float64_state_reaches_a_network_in_its_own_type(wrap, dtype):
    net = Recorder(dtype)
    x, sigma, _ = noisy(tilted(), [0.1, 1.0])
    wrap(net)(x[:, :1], sigma)
    assert net.x.dtype == dtype


def test_each_says_what_it_is_told():
    assert (Timed.conditioning, SigmaConditioned.conditioning) == ("t", "sigma")
    assert OffTheShelf.conditioning == "none"


@pytest.mark.parametrize("value", [0.0, -0.5, math.nan, math.inf])
@pytest.mark.parametrize("name", ["sigma_data", "sigma_min"])
def test_levels_that_are_none_are_refused(name, value):
    with pytest.raises(ValueError, match="must be positive numbers"):
        SigmaConditioned(nn.Identity(), 3, **{name: value})


class Sees(nn.Module):
    def forward(self, x, told):
        self.x, self.told = x, told
        return x.flatten(1)


def test_between_two_entries_the_net_is_told_a_t_between_them():
    """Of a level at a known share of the way in log sigma; the image is scaled by the level."""
    share = torch.tensor([0.0, 0.25, 0.5, 0.9])
    for levels in (linear_levels(interpolated=True), cosine_levels(50, interpolated=True)):
        log_sigmas = torch.tensor(levels.sigmas).log()
        at = torch.tensor([3, 20, 41, 7])
        sigma = (log_sigmas[at] * (1 - share) + log_sigmas[at + 1] * share).exp()
        net, x = Sees(), torch.ones(4, 1, 2, 2, dtype=torch.float64)
        Timed(net, levels, 4)(x, sigma)
        assert_close(net.told, at + share, rtol=0, atol=1e-4)
        assert_close(net.x[:, 0, 0, 0], (1 + sigma**2) ** -0.5)


def test_the_nearest_entry_is_told_unless_levels_say_otherwise():
    levels, net = linear_levels(), Sees()
    sigma = torch.tensor(levels.sigmas[[40, 41]]).mean()[None] * torch.tensor([0.999, 1.001])
    Timed(net, levels, 4)(torch.ones(2, 1, 2, 2, dtype=torch.float64), sigma)
    assert net.told.tolist() == [40, 41]
    assert_close(net.x[:, 0, 0, 0], (1 + sigma**2) ** -0.5)


def test_levels_beyond_the_table_are_told_as_its_ends():
    levels, net = linear_levels(interpolated=True), Sees()
    Timed(net, levels, 4)(torch.ones(3, 1, 2, 2), torch.tensor([0.0, 1e-4, 1e4]))
    assert net.told.tolist() == [0, 0, 999]


def test_a_network_of_the_continuous_process_is_told_its_time():
    net = Sees()
    Timed(net, ContinuousLevels(), 4)(torch.ones(1, 1, 2, 2), torch.tensor([1.0]))
    # 1 + sigma^2 = exp(9.95 t^2 + 0.1 t) is 2 at t = 0.2589...
    t = net.told.item() / 999
    assert 9.95 * t**2 + 0.1 * t == pytest.approx(math.log(2), rel=1e-6)


ENCODER = {"image_size": 16, "in_channels": 2, "model_channels": 32, "out_channels": 3}


@pytest.mark.parametrize("wrap", ["timed", "sigma"])
@pytest.mark.parametrize(
    ("net", "given", "shape"),
    [
        (lambda: MLP([1, 5, 4], num_logits=3, width=8, depth=1), None, (1, 5, 4)),
        (lambda: EncoderUNet(**ENCODER, num_res_blocks=1, attention_resolutions=[],
                             channel_mult=[1]), None, (2, 16, 16)),
        (Sees, None, None),
        (Sees, [3, 8, 6], (3, 8, 6)),
        (lambda: MLP([1, 5, 4], num_logits=3, width=8, depth=1), [1, 4, 5], (1, 4, 5)),
    ],
    ids=["mlp", "encoder", "unknown", "given", "given instead"],
)  # fmt: skip
def test_the_images_that_a_network_was_made_for(wrap, net, given, shape):
    if wrap == "timed":
        classifier = Timed(net(), linear_levels(), 3, shape=given)
    else:
        classifier = SigmaConditioned(net(), 3, shape=given)
    assert classifier.shape == shape
    assert classifier.reads((3, 8, 6)) == (shape in (None, (3, 8, 6)))


def test_a_shape_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"three positive integers, got \[3, 0, 6\]"):
        Timed(Sees(), linear_levels(), 3, shape=[3, 0, 6])
