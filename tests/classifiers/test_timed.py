"""Classifiers that are told the noise level."""

import math

import pytest
import torch
from oracles import noisy, tilted
from torch import nn
from torch.testing import assert_close

from robustguide.classifiers import OffTheShelf, SigmaConditioned, Timed
from robustguide.noise import expand, linear_levels


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
