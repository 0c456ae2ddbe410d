"""Euler's ancestral sampler, against an independent implementation and Euler's method."""

import math
from itertools import pairwise

import pytest
import torch
from golden_files import load
from oracles import (
    ExactClassifier,
    ExactDenoiser,
    ListedGrid,
    RecordedNoise,
    no_noise,
    noisy,
    plane,
    tilted,
)
from sampler_runs import assert_moments, assert_run_is_recorded, flow_error
from torch.testing import assert_close

from robustguide.denoisers import Unconditional
from robustguide.guidance import ClassifierFree, ClassifierGuidance, Guided, Scaled
from robustguide.noise import RhoGrid, noise_like
from robustguide.samplers import Ancestral, EulerAncestral


@pytest.mark.parametrize(
    ("run", "arguments"),
    [
        ("euler", {"eta": 0.0}),
        ("euler_ancestral", {}),
        ("euler_ancestral_eta0.5", {"eta": 0.5, "fresh_noise": 1.01}),
        ("euler_ancestral_eta0", {"eta": 0.0}),
    ],
)
@pytest.mark.parametrize("state_dtype", ["float64", "float32"])
def test_recorded_runs_of_an_independent_implementation(run, arguments, state_dtype):
    noise = no_noise
    if arguments.get("eta") != 0:
        noise = RecordedNoise(load("k_samplers")[1][f"in.{run}.noise"])
    assert_run_is_recorded(run, EulerAncestral, state_dtype, noise, **arguments)
    assert noise is no_noise or not noise.draws  # the last step draws none


def test_without_noise_it_is_eulers_method_guided_or_not():
    mixture = tilted()
    denoiser = ExactDenoiser(mixture)
    sampler = EulerAncestral(RhoGrid(9, 0.05, 10.0), state_dtype="float64", eta=0.0)
    start, _, y = noisy(mixture, [10.0] * 4)
    terms = {"classifier": Scaled(ClassifierGuidance(ExactClassifier(mixture)), 2.0)}
    guided, x = Guided(denoiser, terms), start
    for sigma, sigma_next in pairwise(sampler.grid.sigmas()):
        slope = (x - guided(x, x.new_full((len(x),), sigma), y)) / sigma
        x = x + (sigma_next - sigma) * slope
    got = sampler(denoiser, terms, start, y, no_noise)
    assert_close(got, x, rtol=1e-10, atol=1e-10)
    assert (got - sampler(denoiser, None, start, y, no_noise)).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["unguided", "reference", "score"])
def test_it_is_the_ancestral_sampler_but_for_score_terms(kind):
    """They move the denoised image here, and there the mean by the variance."""
    mixture, grid = plane(), RhoGrid(6, 0.2, 8.0)
    terms = {
        "unguided": None,
        "reference": {"free": Scaled(ClassifierFree(), 1.5)},
        "score": {"classifier": Scaled(ClassifierGuidance(ExactClassifier(mixture)), 1.5)},
    }[kind]
    generator = torch.Generator().manual_seed(0)
    denoiser, draws = ExactDenoiser(mixture), torch.randn(5, 3, 1, 1, 2, generator=generator)
    start, _, y = noisy(mixture, [8.0] * 3)
    ours, theirs = (
        cls(grid, state_dtype="float64")(denoiser, terms, start, y, RecordedNoise(draws))
        for cls in (EulerAncestral, Ancestral)
    )
    if kind == "score":
        assert (ours - theirs).abs().max() > 0.01
    else:
        assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_the_error_falls_with_the_steps():
    errors = [
        flow_error(EulerAncestral(RhoGrid(n, 0.01, 10.0), state_dtype="float64", eta=0.0))
        for n in (65, 129, 257)
    ]
    assert [a / b for a, b in pairwise(errors)] == pytest.approx([2.0, 2.0], rel=0.05)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_guided_samples_have_the_moments_of_the_mixture(eta):
    """Labels drawn from the prior, the exact classifier and the marginal denoiser: the mixture."""
    mixture, generator, n = plane(), torch.Generator().manual_seed(0), 2000
    sampler = EulerAncestral(RhoGrid(150, 0.005, 80.0), eta=eta)
    denoiser = Unconditional(ExactDenoiser(mixture))
    terms = {"classifier": ClassifierGuidance(ExactClassifier(mixture))}
    y = torch.multinomial(mixture.priors, n, replacement=True, generator=generator)
    x = sampler.start(torch.randn(n, *mixture.shape, generator=generator), denoiser)
    x = sampler(denoiser, terms, x, y, lambda x: noise_like(x, generator))
    assert_moments(mixture, x)


def test_fresh_noise_widens_what_is_drawn():
    """In the first step of two, from the same draw."""
    mixture, draw = plane(), torch.tensor([[1.0, -0.5], [0.2, 2.0]]).reshape(2, 1, 1, 2)
    start, _, y = noisy(mixture, [4.0, 4.0])
    after = []
    for width in (0.0, 1.0, 1.5):
        sampler = EulerAncestral(ListedGrid((4.0, 2.0, 0.0)), fresh_noise=width)
        seen = []
        denoiser, noise = ExactDenoiser(mixture), RecordedNoise([draw])
        sampler(denoiser, None, start.float(), y, noise, seen.append)
        after.append(seen[1].x)
    assert_close(after[1] - after[0], 2.0 * math.sqrt(0.75) * draw)
    assert_close(after[2] - after[0], 3.0 * math.sqrt(0.75) * draw)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_noise_that_cannot_be_is_refused(value):
    with pytest.raises(ValueError, match="fresh_noise"):
        EulerAncestral(fresh_noise=value)
