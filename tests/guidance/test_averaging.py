"""Means over Gaussian moves, where they are known."""

import math

import pytest
import torch
from oracles import (
    ExactClassifier,
    ExactDenoiser,
    ListedGrid,
    Mixture,
    RecordedNoise,
    noisy,
    tilted,
)
from torch.testing import assert_close

from robustguide.guidance import (
    AtDenoised,
    AtNormalizedState,
    AtState,
    Averaged,
    ClassifierFree,
    ClassifierGuidance,
    Guidance,
    Guided,
    RawLogit,
    Scaled,
    ThroughDenoiser,
    Within,
)
from robustguide.interfaces import Place
from robustguide.noise import expand, vp_scale
from robustguide.samplers import DDIM, SeededNoise

EXACT = {"rtol": 1e-10, "atol": 1e-10}
SIGMAS = [0.1, 0.7, 3.0, 20.0]


class Exponential(Guidance):
    """Displaces by exp of what it is shown: the state, or the denoised image."""

    def __init__(self, of_image):
        super().__init__()
        self.of_image = of_image

    def forward(self, step):
        return (step.denoised if self.of_image else step.x).exp()


class Cubic(Guidance):
    """Gradient at x of the sum of cubes of the denoised image, through the denoiser."""

    needs_graph = True

    def forward(self, step):
        return step.gradient(step.denoised.pow(3).flatten(1).sum(1))


class Holder(Guidance):
    """A user's term around another, which does not ask whether that is active."""

    def __init__(self, term):
        super().__init__()
        self.term = term

    def forward(self, step):
        return self.term(step)


def displacement(term, x, sigma, y, draws=None, mixture=None, place=None):
    """With the moves that are given, or those of seeds."""
    noise = SeededNoise(range(len(x))) if draws is None else RecordedNoise(draws)
    guided = Guided(ExactDenoiser(mixture or tilted()), {"term": term}, randn_like=noise)
    return guided.split(x, sigma, y, place)[1]


def units(count, like, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(like.shape, generator=generator).to(like) for _ in range(count)]


@pytest.mark.parametrize("view", [AtState(), AtDenoised(), ThroughDenoiser()])
@pytest.mark.parametrize("count", [2, 6])
def test_a_linear_gradient_stays(view, count):
    """The logit of a Gaussian class is quadratic, its gradient linear: pairs cancel exactly."""
    mixture = tilted()
    x, sigma, y = noisy(mixture, SIGMAS)
    term = ClassifierGuidance(ExactClassifier(mixture), objective=RawLogit(), view=view)
    got = displacement(Averaged(term, 0.4, count), x, sigma, y)
    assert_close(got, displacement(term, x, sigma, y), **EXACT)


@pytest.mark.parametrize("of_image", [False, True])
def test_how_far_it_moves(of_image):
    """The mean of exp over a pair is exp times cosh, of the move at every level."""
    x, sigma, y = noisy(tilted(), [0.1, 0.7, 3.0])
    draws, std = units(3, x), 0.3
    got = displacement(Averaged(Exponential(of_image), std, 6), x, sigma, y, draws)
    size = std * (sigma / vp_scale(sigma) if of_image else sigma)
    at = ExactDenoiser(tilted())(x, sigma, y) if of_image else x
    cosh = sum(torch.cosh(expand(size, x) * draw) for draw in draws) / 3
    assert_close(got, at.exp() * cosh, **EXACT)


def test_the_mean_over_many_moves_is_the_gaussian_one():
    """E exp(x + s n) = exp(x + s^2 / 2)."""
    x = torch.full((40_000, 1, 1, 1), 0.3, dtype=torch.float64)
    y = torch.zeros(len(x), dtype=torch.long)
    for level in (0.5, 2.0):
        sigma, size = torch.full((len(x),), level, dtype=torch.float64), 0.4 * level
        term = Averaged(Exponential(False), 0.4, 4)
        got = displacement(term, x, sigma, y, units(2, x), Mixture(torch.zeros(1, 1, 1, 1)))
        of_a_pair = math.exp(0.6 + size**2) * (math.cosh(size**2) - 1)  # its variance
        error = (got.mean().item() - math.exp(0.3 + size**2 / 2)) / math.sqrt(of_a_pair / 80_000)
        assert abs(error) < 4
        assert got.var().item() == pytest.approx(of_a_pair / 2, rel=0.1)


def test_through_the_denoiser_the_image_alone_moves():
    """Gradient of cubes: 3 (D + m)^2 by the Jacobian, whose mean over a pair has m^2."""
    mixture = tilted()
    x, sigma, y = noisy(mixture, SIGMAS)
    draws, std, y = units(1, x), 0.5, torch.full_like(y, len(mixture))
    got = displacement(Averaged(Cubic(), std, 2), x, sigma, y, draws)
    denoised = ExactDenoiser(mixture)(x, sigma, y)
    move = expand(std * sigma / vp_scale(sigma), x) * draws[0]
    pulled = (3 * (denoised**2 + move**2)).flatten(1)
    for row, level in enumerate(SIGMAS):
        jacobian = mixture.posterior_covariance(x[row : row + 1], level)[0] / level**2
        assert_close(got[row].flatten(), jacobian @ pulled[row], **EXACT)


@pytest.mark.parametrize("view", [AtState(), AtNormalizedState(), AtDenoised(), ThroughDenoiser()])
def test_what_it_costs(view):
    mixture = tilted()
    x, sigma, y = noisy(mixture, SIGMAS)
    classifier, denoiser = ExactClassifier(mixture), ExactDenoiser(mixture)
    term = Averaged(ClassifierGuidance(classifier, view=view), 0.1, 6)
    Guided(denoiser, {"term": term}).split(x, sigma, y)
    assert (classifier.calls, denoiser.calls) == ([4] * 6, [4])
    outside = Averaged(Within(term, 5.0), 0.1, 2)
    for inactive in (outside, Holder(outside), Within(term, 5.0), Scaled(term, 0.0)):
        guided = Guided(denoiser, {"term": inactive}, randn_like=RecordedNoise([]))
        assert not guided.split(x, sigma, y, Place(0, 1, 2.0))[1].any()
    assert len(classifier.calls) == 6


def test_between_two_classes_and_beside():
    """The gradient of log p is odd around its value at the border: there pairs cancel exactly.

    Beside it they do not, and eight pairs scatter by 1 / sqrt(8) of what one pair does.
    """
    means = torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1)
    mixture = Mixture(means, 0.001 * torch.ones(2, 1, 1))
    x = torch.zeros(500, 1, 1, 1, dtype=torch.float64)
    sigma, y = torch.full((500,), 0.5, dtype=torch.float64), torch.ones(500, dtype=torch.long)
    term = ClassifierGuidance(ExactClassifier(mixture))
    at_border = displacement(term, x, sigma, y, mixture=mixture)
    got = displacement(Averaged(term, 1.0, 8), x, sigma, y, mixture=mixture)
    assert_close(got, at_border, **EXACT)
    one, eight = (
        displacement(Averaged(term, 1.0, count), x + 0.5, sigma, y, mixture=mixture).std().item()
        for count in (2, 16)
    )
    assert eight / one == pytest.approx(8**-0.5, rel=0.15)


def test_an_image_has_moves_of_its_own():
    """Those of its seed and of the term's name, whatever its batch."""
    mixture = tilted()
    x, _, y = noisy(mixture, [4.0] * 3)
    term = Averaged(ClassifierGuidance(ExactClassifier(mixture)), 0.3, 2)
    sampler = DDIM(ListedGrid((4.0, 1.0, 0.2, 0.0)), state_dtype="float64")

    def images(name, rows):
        noise = SeededNoise([7, 8, 9][rows])
        return sampler(ExactDenoiser(mixture), {name: term}, x[rows], y[rows], noise)

    together = images("a", slice(3))
    for row in range(3):
        assert_close(images("a", slice(row, row + 1)), together[row : row + 1], **EXACT)
    assert (images("b", slice(3)) - together).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((0.0, 4), r"std is the size of the moves .* positive; got 0\.0"),
        ((-0.1, 4), "std"),
        ((math.nan, 4), "std"),
        ((math.inf, 4), "std"),
        ((0.1, 0), r"count is a number of moves in pairs .* got 0"),
        ((0.1, 1), "2, 4, 6"),
        ((0.1, 5), "got 5"),
        ((0.1, -2), "got -2"),
    ],
)
def test_numbers_that_cannot_be(arguments, said):
    with pytest.raises(ValueError, match=said):
        Averaged(ClassifierGuidance(ExactClassifier(tilted())), *arguments)


def test_a_reference_term_has_no_gradient():
    with pytest.raises(ValueError, match=r"Averaged changes a gradient, and ClassifierFree"):
        Averaged(ClassifierFree(), 0.1, 2)
