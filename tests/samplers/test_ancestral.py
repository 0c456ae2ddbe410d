"""Ancestral sampling, against the chain's own formulas and recorded steps."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from golden_files import load
from oracles import (
    ExactClassifier,
    ExactDenoiser,
    Mixture,
    RecordedNoise,
    plane,
    tilted,
)
from recorded_steps import CASES, recorded_steps
from sampler_runs import assert_moments, assert_run_is_recorded
from torch import nn
from torch.testing import assert_close

from robustguide.denoisers import EpsDenoiser, Unconditional
from robustguide.guidance import ClassifierGuidance, Scaled
from robustguide.noise import ChainGrid, RhoGrid, linear_levels, noise_like
from robustguide.samplers import Ancestral, Large, Learned, Small
from robustguide.samplers.ancestral import ancestral_step, last_variance, posterior

RULES = {"LEARNED_RANGE": Learned(), "FIXED_SMALL": Small(), "FIXED_LARGE": Large()}
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def transition(step, denoised, displacement):
    """Mean and variance at the next level, in the units of the chain."""
    _, small, large, _ = posterior(step.sigma, step.sigma_next)
    floor = 0.0 if step.sigma_next > 0 else last_variance(*step.levels[2:0:-1])
    rule = RULES[step.settings["variance"]]
    variance = rule(small, large, floor, step.fraction)
    mean = ancestral_step(step.x, denoised, displacement, variance, step.sigma, step.sigma_next)
    variance = torch.as_tensor(variance, dtype=torch.float64).expand(step.x.shape)
    return step.in_chain(mean), variance[0] / (1 + step.sigma_next**2)


@pytest.mark.parametrize("case", CASES)
def test_recorded_means_and_variances(case):
    for step in recorded_steps(case):
        results, still = step.results, torch.zeros_like(step.x)
        for name, denoised in (("clip0", step.denoised), ("clip1", step.denoised.clamp(-1, 1))):
            mean, variance = transition(step, denoised, still)
            atol = max(1e-6, 1e-5 * results[f"{name}.mean"].abs().max().item())
            assert_close(mean, results[f"{name}.mean"], rtol=1e-5, atol=atol)
            assert_close(variance, results[f"{name}.variance"].expand(3, 4, 4), **CLOSE)
            if variance.min() > 0:
                log_variance = results[f"{name}.log_variance"].expand(3, 4, 4)
                assert_close(variance.log(), log_variance, **CLOSE)


@pytest.mark.parametrize("case", CASES)
def test_recorded_samples_with_and_without_guidance(case):
    for step in recorded_steps(case):
        results, denoised = step.results, step.denoised.clamp(-1, 1)
        guided, variance = transition(step, denoised, step.displacement)
        assert_close(guided, results["condition_mean"], **CLOSE)
        noise = step.noise[0] * (step.sigma_next > 0) * variance.sqrt()
        assert_close(guided + noise, results["p_sample_guided"], **CLOSE)
        mean, _ = transition(step, denoised, torch.zeros_like(step.x))
        assert_close(mean + noise, results["p_sample"], **CLOSE)


@pytest.mark.parametrize("case", CASES)
def test_recorded_posteriors(case):
    x_0 = load("gd_diffusion_steps")[1][f"c{case}.in.x_start"].double()
    for row, step in enumerate(recorded_steps(case)):
        keep, small, _, _ = posterior(step.sigma, step.sigma_next)
        mean = torch.lerp(x_0[row : row + 1], step.x, keep)
        assert_close(step.in_chain(mean), step.results["q_posterior.mean"], **CLOSE)
        variance = torch.tensor(small / (1 + step.sigma_next**2), dtype=torch.float64)
        assert_close(variance.expand(3, 4, 4), step.results["q_posterior.variance"], **CLOSE)


class Chain:
    """Literally Ho et al. (2020), eq. 7, and Dhariwal and Nichol (2021), algorithm 1."""

    def __init__(self, alpha_bars):
        before = np.append(1.0, alpha_bars[:-1])
        self.beta = 1 - alpha_bars / before
        self.alpha_bar, self.alpha_bar_before = alpha_bars, before
        self.beta_tilde = (1 - before) / (1 - alpha_bars) * self.beta

    def mean(self, t, x_0, x_t):
        scale = 1 - self.alpha_bar[t]
        of_x_0 = math.sqrt(self.alpha_bar_before[t]) * self.beta[t] / scale
        of_x_t = math.sqrt(1 - self.beta[t]) * (1 - self.alpha_bar_before[t]) / scale
        return of_x_0 * x_0 + of_x_t * x_t

    def variance(self, t, rule, v):
        clipped = self.beta_tilde[1] if t == 0 else self.beta_tilde[t]
        learned = (v + 1) / 2 * math.log(self.beta[t]) + (1 - v) / 2 * math.log(clipped)
        fixed = {Small: self.beta_tilde[t], Large: self.beta[t] if t > 0 else clipped}
        return learned.exp() if rule is Learned else fixed[rule]


@pytest.mark.parametrize("rule", [Small, Large, Learned])
@pytest.mark.parametrize("spacing", ["25", "250", None])
def test_every_step_is_the_posterior_of_the_chain(spacing, rule):
    grid = ChainGrid(linear_levels(), spacing)
    chain = Chain(linear_levels().alpha_bars[grid.indices()])
    ascending = grid.sigmas()[::-1]
    floor = last_variance(*ascending[2:0:-1])
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(len(ascending), 4, 6, generator=generator, dtype=torch.float64)
    for t, (sigma_next, sigma) in enumerate(pairwise(ascending)):
        x_t, x_0, gradient, v = draws[t]
        v = v.clamp(-1, 1)
        scale, scale_next = math.sqrt(1 + sigma**2), math.sqrt(1 + sigma_next**2)
        _, small, large, _ = posterior(sigma, sigma_next)
        variance = rule()(small, large, 0.0 if t else floor, (v + 1) / 2)
        want = chain.variance(t, rule, v)
        got, want = (torch.as_tensor(v, dtype=torch.float64) for v in (variance, want))
        assert_close(got / scale_next**2, want, rtol=1e-9, atol=1e-15)
        for g in (torch.zeros_like(gradient), gradient):
            displacement = sigma**2 * g / scale  # g is the gradient at x_t
            mean = ancestral_step(x_t * scale, x_0, displacement, variance, sigma, sigma_next)
            expected = chain.mean(t, x_0, x_t) + want * g
            assert_close(mean / scale_next, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("state_dtype", ["float64", "float32"])
def test_it_is_the_ancestral_sampler_of_an_independent_implementation(state_dtype):
    """On any grid, the small variance is Euler's ancestral step."""
    noise = RecordedNoise(load("k_samplers")[1]["in.euler_ancestral.noise"])
    assert_run_is_recorded("euler_ancestral", Ancestral, state_dtype, noise)
    assert not noise.draws  # the last step draws none


@pytest.mark.parametrize("rule", [Small(), Large()])
def test_the_samples_have_the_moments_of_the_mixture(rule):
    mixture, generator = plane(), torch.Generator().manual_seed(0)
    sampler = Ancestral(ChainGrid(linear_levels(), "250"), variance=rule)
    denoiser = ExactDenoiser(mixture)
    x = sampler.start(torch.randn(2000, *mixture.shape, generator=generator), denoiser)
    null = torch.full((2000,), 3)
    x = sampler(denoiser, None, x, null, lambda x: noise_like(x, generator))
    assert_moments(mixture, x)


def test_guided_samples_have_the_moments_of_their_class():
    """Guided by the exact classifier at scale 1, the marginal model samples the class."""
    mixture, generator = tilted(), torch.Generator().manual_seed(0)
    sampler = Ancestral(ChainGrid(linear_levels(), "150"))
    denoiser = Unconditional(ExactDenoiser(mixture))
    x = sampler.start(torch.randn(1000, *mixture.shape, generator=generator), denoiser)
    terms = {"classifier": ClassifierGuidance(ExactClassifier(mixture))}
    x = sampler(denoiser, terms, x, torch.full((1000,), 2), lambda x: noise_like(x, generator))
    assert_moments(Mixture(mixture.means[2:3], mixture.covariances[2:3]), x)


def test_strong_guidance_puts_all_samples_near_the_class():
    """The share of samples nearest to the mean of their class rises with the scale, to 1."""
    mixture, shares = plane(), []
    for scale in (0.0, 1.0, 4.0):
        generator = torch.Generator().manual_seed(0)
        sampler = Ancestral(ChainGrid(linear_levels(), "100"), variance=Large())
        denoiser = Unconditional(ExactDenoiser(mixture))
        x = sampler.start(torch.randn(500, *mixture.shape, generator=generator), denoiser)
        terms = {"classifier": Scaled(ClassifierGuidance(ExactClassifier(mixture)), scale)}
        y = torch.full((500,), 2)
        x = sampler(denoiser, terms, x, y, lambda x, g=generator: noise_like(x, g))
        distance = (x.double()[:, None] - mixture.means).flatten(2).norm(dim=-1)
        shares.append((distance.argmin(-1) == 2).double().mean().item())
    assert shares[0] == pytest.approx(0.2, abs=0.08)
    assert shares[0] < shares[1] < shares[2]
    assert shares[2] > 0.99


def test_a_variance_that_is_not_learned_is_refused():
    sampler = Ancestral(ChainGrid(linear_levels(), "10"), variance=Learned())
    x = torch.zeros(1, 1, 1, 2)
    with pytest.raises(ValueError, match="learned variance"):
        sampler(ExactDenoiser(plane()), None, x, torch.zeros(1).long(), torch.randn_like)


def test_levels_that_snap_to_one_are_visited_once():
    """A grid finer than the chain; a step between equal levels would have no variance."""

    class Tenth(nn.Module):
        def forward(self, x_t, t, y):
            return 0.1 * torch.cat([x_t, x_t], dim=1)

    denoiser = EpsDenoiser(Tenth(), linear_levels(), 3, (1, 1, 2), learns_variance=True)
    sampler, seen = Ancestral(RhoGrid(64), variance=Learned()), []
    snapped = {denoiser.snap(sigma) for sigma in RhoGrid(64).sigmas()}
    assert len(snapped) < 65
    generator = torch.Generator().manual_seed(0)
    x = sampler.start(torch.ones(1, 1, 1, 2), denoiser)
    y = torch.zeros(1, dtype=torch.long)
    x = sampler(denoiser, None, x, y, lambda x: noise_like(x, generator), seen.append)
    assert x.isfinite().all()
    assert [o.place.sigma for o in seen] == sorted(snapped, reverse=True)[:-1]
