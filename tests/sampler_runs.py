"""Runs of samplers whose results are known: recorded ones, and the flow of a Gaussian."""

import math

import torch
from golden_files import load
from oracles import ExactDenoiser, ListedGrid, Mixture, no_noise
from torch.testing import assert_close


def recorded_mixture():
    """The mixture of `k_samplers`, and everything recorded with it."""
    description, tensors = load("k_samplers")
    variances = tensors["in.toy_variances"].reshape(-1, 1, 1) * torch.eye(32)
    mixture = Mixture(tensors["in.toy_means"], variances, tensors["in.toy_weights"])
    return mixture, description, tensors


def assert_run_is_recorded(run, cls, state_dtype, noise=no_noise, **arguments):
    """All states and the result of an independent implementation of a sampler."""
    mixture, description, tensors = recorded_mixture()
    (settings,) = [settings for settings in description["runs"] if settings["run"] == run]
    grid = ListedGrid(tuple(tensors[f"out.sigmas.{settings['sigmas']}"].tolist()))
    sampler, seen = cls(grid, state_dtype=state_dtype, **arguments), []
    denoiser = ExactDenoiser(mixture)
    x = sampler.start(tensors["in.x_unit"], denoiser)
    x = sampler(denoiser, None, x, torch.full((3,), 3), noise, seen.append)
    name = "x" if state_dtype == "float64" else "x_float32"
    close = description["tolerance"][name]
    assert x.dtype == getattr(torch, state_dtype)
    assert_close(x, tensors[f"out.{run}.{name}"], **close)
    states = torch.stack([observation.x for observation in seen]).double()
    assert_close(states, tensors[f"out.{run}.x_per_step"], **close)


def gaussian(variance):
    """One class, N(m, variance)."""
    mean = torch.tensor([0.7, -0.3], dtype=torch.float64).reshape(1, 1, 1, 2)
    return Mixture(mean, variance * torch.eye(2)[None])


def flow_error(sampler, variance=0.25):
    """Largest error at the last level s but 0 of m + (x_T - m) sqrt((v + s**2) / (v + s_T**2))."""
    mixture, seen = gaussian(variance), []
    denoiser = ExactDenoiser(mixture)
    noise = torch.tensor([[1.0, -0.5], [0.2, 2.0]]).reshape(2, 1, 1, 2)
    start, y = sampler.start(noise, denoiser), torch.zeros(2, dtype=torch.long)
    sampler(denoiser, None, start, y, no_noise, seen.append)
    sigma_max, *_, sigma_min, _ = sampler.grid.sigmas()
    shrink = math.sqrt((variance + sigma_min**2) / (variance + sigma_max**2))
    exact = mixture.means + (start - mixture.means) * shrink
    return (seen[-1].x - exact).abs().max().item()


def assert_moments(mixture, x):
    """Mean and covariance within 4.5 standard errors of what the mixture has."""
    mean, covariance = mixture.moments()
    centred = x.double().flatten(1) - mean
    products = centred[:, :, None] * centred[:, None, :]
    error = 4.5 / math.sqrt(len(x))
    assert (centred.mean(0).abs() < error * covariance.diagonal().sqrt()).all()
    assert ((products.mean(0) - covariance).abs() < error * products.std(0)).all()
