"""What moves the mean in place of the variance, in closed form."""

import math

import pytest
import torch
from oracles import ExactClassifier, ExactDenoiser, RecordedNoise, noisy, tilted
from torch.testing import assert_close

from robustguide.denoisers import Unconditional
from robustguide.guidance import ClassifierGuidance, Guided
from robustguide.interfaces import Denoiser, Place
from robustguide.noise import ChainGrid, RhoGrid, linear_levels
from robustguide.samplers import Ancestral, Large, Learned, ReleasedSine, Sine, Small
from robustguide.samplers.ancestral import posterior
from robustguide.samplers.base import Run

CHAIN = ChainGrid(linear_levels(), "250")


def started(grid, denoiser=None):
    """A run of which nothing is done yet."""
    guided = Guided(denoiser or ExactDenoiser(tilted()))
    y = torch.zeros(1, dtype=torch.long)
    return Run(guided, tuple(grid.sigmas()), y, torch.randn_like, lambda *shown: None)


def added(schedule, run, t, variance=0.0):
    """What is added at t = steps - 1, ..., 0, in units of x_t."""
    index = run.steps - 1 - t
    place = Place(index, run.steps, run.sigmas[index])
    unit = 1 + run.levels(place)[1] ** 2
    return (schedule(variance, run, place) - variance) / unit


def test_values_on_the_chain_of_250_steps():
    """With gamma 0.3 and the posterior's variance, to the digits that are printed."""
    run = started(CHAIN)
    printed = {249: 0.0003, 125: 0.0233, 62: 0.0163, 10: 0.0029, 0: 0.0}
    for t, value in printed.items():
        assert added(Sine(0.3), run, t) == pytest.approx(value, abs=5.1e-5)
    assert added(Sine(1.0), run, 125) == pytest.approx(0.0775191, abs=5e-8)
    for t in (1, 40, 100):  # symmetric about the middle
        assert added(Sine(0.3), run, t) == pytest.approx(added(Sine(0.3), run, 250 - t), rel=1e-12)


@pytest.mark.parametrize("grid", [CHAIN, RhoGrid(9, 0.05, 40.0)])
@pytest.mark.parametrize("schedule", [Sine(0.0), ReleasedSine(0.0)])
def test_gamma_zero_is_the_variance(schedule, grid):
    run = started(grid)
    variance = torch.rand(2, 1, 3, 2, generator=torch.Generator().manual_seed(0))
    for index in range(run.steps):
        place = Place(index, run.steps, run.sigmas[index])
        assert torch.equal(schedule(variance, run, place), variance)
        assert schedule(0.7, run, place) == 0.7


def test_the_published_maximum_is_the_first_small_variance_where_nothing_is_learned():
    """Small variances fall along the whole chain, so that the largest one is the first."""
    whole = ChainGrid(linear_levels())
    one, other = started(whole), started(whole)
    for index in range(one.steps):
        place = Place(index, one.steps, one.sigmas[index])
        small = posterior(*one.levels(place))[1]
        got = ReleasedSine(0.3)(small, one, place)
        assert got == pytest.approx(Sine(0.3)(small, other, place), rel=1e-13)


def test_the_published_maximum_runs_over_the_first_pixel_of_a_run():
    run = started(RhoGrid(4, 0.5, 8.0))
    unit = [1 + sigma**2 for sigma in run.sigmas[1:]]
    pixels, largest = [0.2, 0.5, 0.1, 0.3], [0.2, 0.5, 0.5, 0.5]
    for index, (pixel, top) in enumerate(zip(pixels, largest, strict=True)):
        variance = torch.full((2, 1, 2, 2), 9.0, dtype=torch.float64)
        variance[0, 0, 0, 0] = pixel * unit[index]
        place = Place(index, 4, run.sigmas[index])
        wave = math.sin(math.pi * (3 - index) / 4)
        want = variance + unit[index] * 2.0 * top * wave
        assert_close(ReleasedSine(2.0)(variance, run, place), want, rtol=1e-13, atol=1e-13)
    assert run.memory["largest_variance"].shape == ()  # on the device, where it was made


class Fractions(Denoiser):
    """An exact denoiser with learned variances that differ from row to row."""

    learns_variance = True

    def __init__(self, mixture):
        super().__init__()
        self.inner = Unconditional(ExactDenoiser(mixture))
        self.num_classes, self.shape = self.inner.num_classes, self.inner.shape

    def predict(self, x, sigma, y):
        share = (1 + y).reshape(-1, 1, 1, 1) / 5 * torch.ones_like(x)
        return self.inner.predict(x, sigma, y)._replace(fraction=share)


def sampled(schedule, rows, terms=True, grid=None, variance=None):
    """Ancestral samples of the given rows, whose noise is theirs."""
    mixture = tilted()
    x, _, y = noisy(mixture, [3.0] * 4)
    draws = torch.randn(5, *x.shape, generator=torch.Generator().manual_seed(2)).double()
    term = {"c": ClassifierGuidance(ExactClassifier(mixture))} if terms else None
    sampler = Ancestral(
        grid or RhoGrid(5, 0.1, 3.0),
        state_dtype="float64",
        variance=variance or Learned(),
        guidance_variance=schedule,
    )
    noise = RecordedNoise(draws[:, rows])
    return sampler(Fractions(mixture), term, x[rows], y[rows], noise)


def test_an_image_depends_on_its_batch_in_the_published_schedule_alone():
    for row in range(4):
        alone, together = (sampled(Sine(1.0), rows) for rows in ([row], [0, 1, 2, 3]))
        assert_close(alone[0], together[row], rtol=1e-11, atol=1e-11)
    alone, together = (sampled(ReleasedSine(1.0), rows) for rows in ([3], [0, 1, 2, 3]))
    assert (alone[0] - together[3]).abs().max() > 1e-3
    again = sampled(ReleasedSine(1.0), [0, 1, 2, 3])
    assert torch.equal(again, together)  # nothing is remembered from run to run


@pytest.mark.parametrize("schedule", [Sine(3.0), ReleasedSine(3.0)])
def test_without_score_terms_nothing_changes(schedule):
    rows = [0, 1, 2, 3]
    assert torch.equal(sampled(schedule, rows, terms=False), sampled(None, rows, terms=False))


@pytest.mark.parametrize("variance", [Small(), Large(), Learned()])
def test_the_mean_moves_by_the_wider_variance_and_the_noise_does_not(variance):
    """Two steps: the second has no wave, and the same noise is drawn in the first."""
    mixture, sigma, sigma_next = tilted(), 3.0, 1.2
    x, sigmas, y = noisy(mixture, [sigma] * 4)
    x_0 = RhoGrid(2, sigma_next, sigma)
    assert x_0.sigmas() == pytest.approx((sigma, sigma_next, 0.0))
    seen = []
    for schedule in (None, Sine(0.5)):
        sampler = Ancestral(
            x_0, state_dtype="float64", variance=variance, guidance_variance=schedule
        )
        states, term = [], ClassifierGuidance(ExactClassifier(mixture))
        noise = RecordedNoise(torch.ones(1, *x.shape).double())
        sampler(Fractions(mixture), {"c": term}, x, y, noise, states.append)
        seen.append(states[1].x)
    score = mixture.score(x, sigmas, y) - mixture.score(x, sigmas, torch.full_like(y, 4))
    small = posterior(sigma, sigma_next)[1]  # k = 1 of 2: the wave is at its top
    ratio = (1 + sigma_next**2) / (1 + sigma**2)
    assert_close(seen[1] - seen[0], 0.5 * small * score / ratio**0.5, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("cls", [Sine, ReleasedSine])
@pytest.mark.parametrize("gamma", [-0.1, math.nan, math.inf])
def test_another_gamma_is_refused(cls, gamma):
    with pytest.raises(ValueError, match="gamma must be a finite number of at least 0"):
        cls(gamma)


@pytest.mark.parametrize("schedule", [Sine(0.3), ReleasedSine(0.3)])
def test_no_value_is_asked_for_on_the_device(schedule):
    run = started(CHAIN)
    with torch.device("meta"):
        variance = torch.ones(2, 3, 4, 4)
    for index in (0, 1):
        assert schedule(variance, run, Place(index, 250, run.sigmas[index])).is_meta
