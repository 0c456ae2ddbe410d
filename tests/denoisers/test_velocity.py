"""Velocity-predicting networks of a discrete chain, read as denoisers."""

import torch
from oracles import noisy, tilted
from torch import nn
from torch.testing import assert_close

from robustguide.denoisers import EpsDenoiser, VDenoiser
from robustguide.noise import linear_levels

SIGMAS = linear_levels().sigmas[[0, 40, 400, 999]].tolist()


class ExactVelocity(nn.Module):
    """`sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0`, with the mixture's expected image."""

    def __init__(self, mixture, levels):
        super().__init__()
        self.mixture, self.alpha_bars = mixture, torch.tensor(levels.alpha_bars)

    def forward(self, x_t, t, y):
        alpha_bar = self.alpha_bars[t.long()]
        sigma = ((1 - alpha_bar) / alpha_bar).sqrt()
        keep, add = (
            alpha_bar.sqrt()[:, None, None, None],
            (1 - alpha_bar).sqrt()[:, None, None, None],
        )
        x = x_t / keep
        x_0 = x + sigma[:, None, None, None] ** 2 * self.mixture.score(x, sigma, y)
        return keep * (x_t - keep * x_0) / add - add * x_0


class Constant(nn.Module):
    """Answers with a given tensor."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x_t, t, y):
        return self.answer


def test_the_exact_network_is_the_exact_denoiser():
    mixture, levels = tilted(), linear_levels()
    x, sigma, y = noisy(mixture, SIGMAS)
    denoiser = VDenoiser(ExactVelocity(mixture, levels), levels, len(mixture), mixture.shape)
    want = x + sigma.reshape(-1, 1, 1, 1) ** 2 * mixture.score(x, sigma, y)
    assert_close(denoiser(x, sigma, y), want, rtol=1e-8, atol=1e-8)


def test_the_weighted_error_is_that_of_the_networks_own_answer():
    mixture = tilted()
    x, sigma, y = noisy(mixture, SIGMAS)
    generator = torch.Generator().manual_seed(0)
    right, wrong = torch.randn(2, *x.shape, dtype=x.dtype, generator=generator)
    for kind in (VDenoiser, EpsDenoiser):
        pair = [
            kind(Constant(answer), linear_levels(), len(mixture), mixture.shape)
            for answer in (right, wrong)
        ]
        error = (pair[0](x, sigma, y) - pair[1](x, sigma, y)).square().flatten(1).mean(1)
        want = (right - wrong).square().flatten(1).mean(1)
        assert_close(pair[0].loss_weight(sigma) * error, want)


def test_the_second_half_of_the_channels_is_the_variance():
    mixture = tilted()
    x, sigma, y = noisy(mixture, SIGMAS)
    velocity = torch.ones_like(x)
    net = Constant(torch.cat([velocity, torch.full_like(x, 0.5)], dim=1))
    learned = VDenoiser(net, linear_levels(), len(mixture), mixture.shape, learns_variance=True)
    plain = VDenoiser(Constant(velocity), linear_levels(), len(mixture), mixture.shape)
    prediction = learned.predict(x, sigma, y)
    assert_close(prediction.denoised, plain(x, sigma, y))
    assert prediction.fraction.eq(0.75).all()
