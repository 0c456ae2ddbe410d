"""EDM's preconditioning."""

import math

import pytest
import torch
from oracles import noisy, plane
from torch import nn
from torch.testing import assert_close

from robustguide.denoisers import EDMDenoiser

SIGMAS = [0.002, 0.1, 0.5, 3.0, 80.0]


class Constant(nn.Module):
    def __init__(self, value, dtype=torch.float64):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value, dtype=dtype))

    def forward(self, *inputs):
        self.inputs = inputs
        return self.value.expand(inputs[0].shape)


def coefficients(sigma):
    """c_skip, c_out and c_in as the wrapped network meets them, at x = 1."""
    x, y = torch.ones(len(sigma), 1, 1, 1, dtype=torch.float64), torch.zeros(len(sigma)).long()
    zero, one = (EDMDenoiser(Constant(value), 1, (1, 1, 1)) for value in (0.0, 1.0))
    skip = zero(x, sigma, y)
    return skip.flatten(), (one(x, sigma, y) - skip).flatten(), one.net.inputs[0].flatten()


def test_input_and_training_target_have_unit_variance_at_every_level():
    sigma = torch.tensor(SIGMAS, dtype=torch.float64)
    skip, scale, inward = coefficients(sigma)
    ones = torch.ones_like(sigma)
    assert_close(inward**2 * (0.5**2 + sigma**2), ones)
    # The target of the network is (x_0 - c_skip (x_0 + sigma n)) / c_out.
    assert_close(((1 - skip) ** 2 * 0.5**2 + skip**2 * sigma**2) / scale**2, ones)
    weight = EDMDenoiser(Constant(0.0), 1, (1, 1, 1)).loss_weight(sigma)
    assert_close(weight * scale**2, ones)


def test_without_noise_the_image_comes_back():
    x, _, y = noisy(plane(), [1.0, 2.0])
    denoiser = EDMDenoiser(Constant(1.0), 3, (1, 1, 2))
    denoised = denoiser(x, torch.full((2,), 1e-9, dtype=torch.float64), y)
    assert_close(denoised, x, rtol=0, atol=2e-9)


def test_at_high_noise_the_network_speaks_alone():
    x = 1e4 * torch.ones(1, 1, 1, 2, dtype=torch.float64)
    denoised = EDMDenoiser(Constant(0.7), 1, (1, 1, 2))(x, x[:, 0, 0, 0], torch.zeros(1).long())
    assert_close(denoised, torch.full_like(x, 0.5 * 0.7), rtol=1e-3, atol=0)


def test_the_network_is_told_a_quarter_of_log_sigma_in_full_precision():
    net = Constant(0.0, torch.bfloat16)
    x, sigma, y = noisy(plane(), [0.3, 7.0])
    denoised = EDMDenoiser(net, 3, (1, 1, 2))(x, sigma, y)
    inputs, noise, labels = net.inputs
    assert inputs.dtype == torch.bfloat16
    assert_close(noise, sigma.log().float() / 4)
    assert torch.equal(labels, y)
    assert denoised.dtype == x.dtype
    EDMDenoiser(net, 0, (1, 1, 2))(x, sigma, y)
    assert len(net.inputs) == 2


@pytest.mark.parametrize("sigma_data", [0.0, -0.5, math.nan, math.inf])
def test_a_deviation_of_the_data_that_is_none_is_refused(sigma_data):
    with pytest.raises(ValueError, match="sigma_data must be a positive number"):
        EDMDenoiser(nn.Identity(), 3, (1, 1, 2), sigma_data)
