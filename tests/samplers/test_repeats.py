"""Self-recurrence: a step made several times, its noise put back in between.

Here each pixel stands for one independent source of noise, and data are N(0, I): samplers are
linear, so that a state holds the coefficients of its sources and its variance is their square sum.
"""

import math
from argparse import ArgumentError
from itertools import pairwise

import pytest
import torch
from jsonargparse import ArgumentParser, set_parsing_settings
from oracles import ExactDenoiser, ListedGrid, noisy, tilted
from torch.testing import assert_close

from robustguide.guidance import Guided
from robustguide.interfaces import Denoiser, Place, Prediction
from robustguide.samplers import (
    DDIM,
    Ancestral,
    DPMSolver2M,
    EulerAncestral,
    Heun,
    Large,
    RungeKutta,
    Sampler,
    SeededNoise,
)
from robustguide.samplers.base import Run

EXACT = {"rtol": 1e-10, "atol": 1e-10}
PIXELS = 40
LEVELS = (6.0, 3.0, 1.5, 0.5, 0.0)
LABEL = torch.zeros(1, dtype=torch.long)
CHURN = {"churn": 2.0, "churn_noise": 1.1}
# Sampler, arguments, evaluations of a step and draws of its own noise, both not of the last step.
SAMPLERS = {
    "ancestral": (Ancestral, {}, 1, 1),
    "ancestral, large": (Ancestral, {"variance": Large()}, 1, 1),
    "ddim": (DDIM, {}, 1, 0),
    "ddim, eta 1": (DDIM, {"eta": 1.0}, 1, 1),
    "euler ancestral": (EulerAncestral, {"eta": 0.5}, 1, 1),
    "heun": (Heun, {}, 2, 0),
    "heun with churn": (Heun, CHURN, 2, 1),
    "midpoint with churn": (RungeKutta, CHURN | {"alpha": 0.5}, 2, 1),
    "dpm": (DPMSolver2M, {}, 1, 0),
}


class UnitGaussian(Denoiser):
    """E[x_0 | x] of N(0, I); keeps the levels that it is asked for."""

    num_classes, shape = 1, (1, 1, PIXELS)

    def __init__(self):
        super().__init__()
        self.asked = []

    def predict(self, x, sigma, y):
        self.asked.append(sigma[0].item())
        return Prediction(x / (1 + sigma.reshape(-1, 1, 1, 1) ** 2))


class Sources:
    """Every draw is a source of its own: the next pixel."""

    def __init__(self):
        self.draws = 0

    def __call__(self, x):
        self.draws += 1
        unit = torch.zeros_like(x)
        unit[..., self.draws] = 1
        return unit


def made(name, grid, **arguments):
    cls, own, _, _ = SAMPLERS[name]
    return cls(ListedGrid(grid), state_dtype="float64", **own, **arguments)


def first(sigma):
    """A state of the data at a level: one source of variance 1 + sigma**2."""
    x = torch.zeros(1, 1, 1, PIXELS, dtype=torch.float64)
    x[..., 0] = math.sqrt(1 + sigma**2)
    return x


def run(sampler, observe=None):
    denoiser, sources = UnitGaussian(), Sources()
    x = first(sampler.grid.sigmas()[0])
    x = sampler(denoiser, None, x, LABEL, sources, observe)
    return x, denoiser, sources


def variance(x):
    return x.square().sum().item()


@pytest.mark.parametrize("repeats", [1, 3, (1, 3, 2), (4, 1)])
def test_the_variance_of_the_data_is_kept(repeats):
    """The step with the large variance keeps it, so what puts the noise back must do it too."""
    grid, seen = ListedGrid((6.0, 3.0, 1.5, 0.5, 0.2)), []
    sampler = Ancestral(grid, state_dtype="float64", variance=Large(), repeats=repeats)
    x, denoiser, _ = run(sampler, seen.append)
    assert variance(x) == pytest.approx(1 + 0.2**2, rel=1e-10)
    for observation in seen:
        expected = 1 + observation.place.sigma**2
        assert variance(observation.x) == pytest.approx(expected, rel=1e-10)
    assert len(denoiser.asked) > 4 or repeats == 1


@pytest.mark.parametrize("levels", [(4.0, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_goes_back_and_forth(name, levels):
    """A pass that keeps a share a of the state makes v into a**2 v and its own noise."""
    sigma, sigma_next = levels
    once, _, _ = run(made(name, levels))
    kept = once[0, 0, 0, 0].item() / math.sqrt(1 + sigma**2)
    own = variance(once[..., 1:])
    expected = 1 + sigma**2
    for repeats in (1, 2, 3, 4):
        back = (sigma**2 - sigma_next**2) if repeats > 1 else 0.0
        expected = kept**2 * (expected + back) + own
        got, _, _ = run(made(name, levels, repeats=repeats))
        assert variance(got) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_repetition_changes_nothing(name):
    """Bit for bit, against the steps alone."""
    sampler = made(name, LEVELS)
    denoiser, sources = UnitGaussian(), Sources()
    alone = Run(Guided(denoiser), LEVELS, LABEL, sources, lambda place, x, denoised: None)
    x = first(LEVELS[0])
    for index, sigma in enumerate(LEVELS[:-1]):
        x = sampler.step(alone, x, Place(index, 4, sigma))
    for repeats in (1, (1,), (1, 1, 1)):
        got, other, draws = run(made(name, LEVELS, repeats=repeats))
        assert torch.equal(got, x)
        assert (other.asked, draws.draws) == (denoiser.asked, sources.draws)
    twice, _, _ = run(made(name, LEVELS, repeats=(1, 1, 1, 2)))
    assert not torch.equal(twice, x)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_cost_and_what_is_observed(name):
    repeats, seen = (3, 1, 2, 4), []
    _, _, evaluations, draws = SAMPLERS[name]
    _, denoiser, sources = run(made(name, LEVELS, repeats=repeats), seen.append)
    assert len(denoiser.asked) == 6 * evaluations + 4  # one to level 0
    churned = 10 if "churn" in name else 6  # churn comes before a step, other noise ends it
    assert sources.draws == draws * churned + sum(repeats) - 4
    assert [o.place.index for o in seen] == [0, 1, 2, 3]
    assert [o.place.repeat for o in seen] == [2, 0, 1, 3]


def test_a_history_is_that_of_the_last_repetition():
    """DPM-Solver++(2M) written out, with the first step's image remembered after its last pass."""
    repeats, sources = (2, 3, 1, 2), Sources()
    x, last = first(LEVELS[0]), None
    for index, (sigma, sigma_next) in enumerate(pairwise(LEVELS)):
        for repeat in range(repeats[index]):
            if repeat:
                x = x + math.sqrt(sigma**2 - sigma_next**2) * sources(x)
            denoised = towards = x / (1 + sigma**2)
            if index and sigma_next:
                before = math.log(LEVELS[index - 1] / sigma)
                change = (denoised - last) / before
                towards = denoised + change * math.log(sigma / sigma_next) / 2
            x = towards + sigma_next / sigma * (x - towards)
        last = denoised
    got, _, _ = run(made("dpm", LEVELS, repeats=repeats))
    assert_close(got, x, **EXACT)


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_image_does_not_depend_on_its_batch(name):
    mixture = tilted()
    denoiser, sampler = ExactDenoiser(mixture), made(name, LEVELS, repeats=2)
    x, _, y = noisy(mixture, [6.0] * 3)
    together = sampler(denoiser, None, x, y, SeededNoise([4, 5, 6]))
    for row in range(3):
        one = slice(row, row + 1)
        alone = sampler(denoiser, None, x[one], y[one], SeededNoise([4 + row]))
        assert_close(alone, together[one], **EXACT)


@pytest.mark.parametrize(
    ("repeats", "steps", "expected"),
    [
        (3, 4, [3, 3, 3, 3]),
        ((3, 1), 10, [3] * 5 + [1] * 5),
        ((1, 2, 3), 6, [1, 1, 2, 2, 3, 3]),
        ((1, 2, 3), 7, [1, 1, 2, 2, 3, 3, 3]),
        ((5, 1), 3, [5, 1, 1]),
        ((1, 2, 3, 4), 4, [1, 2, 3, 4]),
    ],
)
def test_several_numbers_share_the_run(repeats, steps, expected):
    """As theirs, which is listed from low noise: number `int(count * t / steps)` at index t."""
    sampler = DDIM(ListedGrid((1.0, 0.0)), repeats=repeats)
    assert [sampler.repeated(index, steps) for index in range(steps)] == expected
    if isinstance(repeats, tuple):
        theirs = [repeats[::-1][int(len(repeats) * t / steps)] for t in range(steps)]
        assert theirs[::-1] == expected


def parsed(repeats):
    set_parsing_settings(subclasses_enabled=[Sampler])  # as the command line does it
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--sampler", type=Sampler)
    grid = {"class_path": "robustguide.noise.RhoGrid", "init_args": {"steps": 4}}
    arguments = {"grid": grid, "repeats": repeats}
    described = {"class_path": "robustguide.samplers.Heun", "init_args": arguments}
    return parser.instantiate(parser.parse_object({"sampler": described})).sampler


@pytest.mark.parametrize(("given", "repeats"), [(3, 3), ([1, 2, 3], (1, 2, 3)), ([2], (2,))])
def test_a_configuration_names_one_or_several(given, repeats):
    assert parsed(given).repeats == repeats


@pytest.mark.parametrize("given", [0, -1, [1, 0], []])
def test_less_than_once_is_refused_when_read(given):
    with pytest.raises(ValueError, match="repeats counts how often each step is made, at least 1"):
        parsed(given)


@pytest.mark.parametrize("given", ["often", 2.5, [1.5], True])
def test_what_is_no_number_of_times_is_refused_when_read(given):
    with pytest.raises(ArgumentError, match=r'Parser key "repeats"'):
        parsed(given)
