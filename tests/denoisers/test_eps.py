"""Noise-predicting networks of a discrete chain, read as denoisers."""

import pytest
import torch
from golden_files import load
from oracles import noisy, plane, tilted
from torch import nn
from torch.testing import assert_close

from robustguide.denoisers import EpsDenoiser
from robustguide.noise import ChainGrid, cosine_levels, expand, linear_levels, vp_scale


class ExactEps(nn.Module):
    """The best prediction of the noise in x_t, from the mixture in the chain's own units."""

    def __init__(self, mixture, levels):
        super().__init__()
        self.mixture, self.alpha_bars = mixture, torch.tensor(levels.alpha_bars)

    def forward(self, x_t, t, y):
        alpha_bar = self.alpha_bars[t.long()].reshape(-1, 1, 1, 1)
        mean = alpha_bar.sqrt() * self.mixture.means[y]
        covariance = self.mixture.covariances[y] * alpha_bar[..., 0]
        covariance = covariance + (1 - alpha_bar[..., 0]) * torch.eye(covariance.shape[-1])
        score = torch.linalg.solve(covariance, (mean - x_t).flatten(1)).reshape(x_t.shape)
        return -((1 - alpha_bar).sqrt()) * score


class Recorder(nn.Module):
    """Answers with given channels and keeps what it was asked."""

    def __init__(self, answer, dtype=torch.float32):
        super().__init__()
        self.answer, self.unit = answer, nn.Parameter(torch.ones(1, dtype=dtype))

    def forward(self, *inputs):
        self.inputs = inputs
        return self.answer.to(self.unit)


def test_the_exact_network_is_the_exact_denoiser():
    mixture, levels = tilted(), linear_levels()
    sigmas = levels.sigmas[[0, 40, 400, 999]].tolist()
    x, sigma, y = noisy(mixture, sigmas)
    denoiser = EpsDenoiser(ExactEps(mixture, levels), levels, len(mixture), mixture.shape)
    want = x + sigma.reshape(-1, 1, 1, 1) ** 2 * mixture.score(x, sigma, y)
    assert_close(denoiser(x, sigma, y), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", [0, 1, 2, 3, 6])
def test_the_clean_image_is_that_of_the_chain(case):
    """`pred_xstart` of recorded steps with a given network output."""
    description, tensors = load("gd_diffusion_steps")
    c, settings = f"c{case}.", description["cases"][case]
    levels = {"linear": linear_levels, "cosine": cosine_levels}[settings["schedule"]]()
    indices = ChainGrid(levels, settings["respacing"] or None).indices()
    sigma = torch.tensor([levels.sigmas[indices[t]] for t in tensors[c + "in.t"]])
    net = Recorder(tensors[c + "in.model_output"])
    learned = settings["variance"] == "LEARNED_RANGE"
    denoiser = EpsDenoiser(net, levels, 10, (3, 4, 4), learns_variance=learned)
    x = tensors[c + "out.q_sample"].double() * expand(vp_scale(sigma), net.answer)
    prediction = denoiser.predict(x, sigma, torch.zeros(4, dtype=torch.long))
    want = tensors[c + "out.clip0.pred_xstart"].double()
    rows = want.flatten(1).abs().amax(1)  # up to 2e4 at the last level of the cosine chain
    error = (prediction.denoised - want).flatten(1).abs().amax(1)
    assert (error <= 1e-6 + 1e-5 * rows).all()
    assert_close(net.inputs[1], tensors[c + "out.timesteps_given_to_model"].float())
    assert (prediction.fraction is not None) == learned
    if learned:
        assert_close(prediction.fraction, (net.answer[:, 3:].double() + 1) / 2)


def test_the_network_is_asked_in_its_own_units_and_type():
    levels = linear_levels()
    net = Recorder(torch.full((2, 1, 1, 2), 0.5), torch.bfloat16)
    x, sigma, y = noisy(plane(), [levels.sigmas[7], levels.sigmas[900]])
    denoised = EpsDenoiser(net, levels, 3, (1, 1, 2))(x, sigma, y)
    x_t, t, labels = net.inputs
    assert x_t.dtype == torch.bfloat16
    alpha_bar = torch.tensor(levels.alpha_bars[[7, 900]]).reshape(-1, 1, 1, 1)
    assert_close(x_t, (alpha_bar.sqrt() * x).bfloat16())
    assert t.tolist() == [7.0, 900.0]
    assert torch.equal(labels, y)
    assert denoised.dtype == torch.float64
    assert_close(denoised, x - sigma.reshape(-1, 1, 1, 1) * 0.5)


def test_a_network_without_classes_gets_no_labels():
    net = Recorder(torch.zeros(1, 1, 1, 2))
    x, sigma, y = noisy(plane(), [1.0])
    EpsDenoiser(net, linear_levels(), 0, (1, 1, 2))(x, sigma, y)
    assert len(net.inputs) == 2


def test_levels_snap_to_the_chain():
    levels = linear_levels()
    denoiser = EpsDenoiser(nn.Identity(), levels, 3, (1, 1, 2))
    assert denoiser.snap(1.0) == levels.snap(1.0) != 1.0


@pytest.mark.parametrize("shape", [(3, 8), (3, 8, 0), (3, -8, 8)])
def test_a_shape_that_is_none_is_refused(shape):
    with pytest.raises(ValueError, match="channels, height, width"):
        EpsDenoiser(nn.Identity(), linear_levels(), 3, shape)
