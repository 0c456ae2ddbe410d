"""Gradients of one length."""

import math

import pytest
import torch
from golden_files import load, tolerance
from oracles import ExactClassifier, ExactDenoiser, noisy, tilted
from torch.testing import assert_close

from robustguide.guidance import ClassifierFree, ClassifierGuidance, Guidance, Guided, UnitNorm
from robustguide.guidance.normalization import unit_norm
from robustguide.noise import expand, vp_scale

EXACT = {"rtol": 1e-10, "atol": 1e-12}


def test_recorded_gradients():
    description, recorded = load("gradient_stabilizers")
    got = torch.stack([unit_norm(gradient, 1e-4) for gradient in recorded["in.gradients"]])
    assert_close(got, recorded["out.l2_normalized"], **tolerance(description, "l2_normalized"))


def test_each_image_has_a_length_of_its_own():
    gradient = torch.randn(4, 3, 5, 2, generator=torch.Generator().manual_seed(0)).double()
    gradient *= torch.tensor([1e6, 1.0, 2e-4, 0.0]).reshape(-1, 1, 1, 1)
    got = unit_norm(gradient, 1e-4)
    assert_close(got.flatten(1).norm(dim=1), torch.tensor([1.0, 1, 1, 0]).double(), **EXACT)
    below = unit_norm(1e-7 * gradient[1:2] / gradient[1:2].norm(), 1e-4)
    assert_close(below.norm(), torch.tensor(1e-3, dtype=torch.float64), **EXACT)


class Slope(Guidance):
    """A given score at x."""

    def __init__(self, score):
        super().__init__()
        self.score = score

    def forward(self, step):
        return expand(step.sigma**2, step.x) * self.score


def displacement(term, x, sigma, y):
    return Guided(ExactDenoiser(tilted()), {"term": term}).split(x, sigma, y)[1]


def test_the_norm_is_that_of_the_gradient_at_x_t():
    """Which is sqrt(1 + sigma^2) / sigma^2 times the displacement."""
    x, sigma, y = noisy(tilted(), [0.05, 1.0, 20.0, 150.0])
    term = ClassifierGuidance(ExactClassifier(tilted()))
    got = displacement(UnitNorm(term), x, sigma, y)
    length = got.flatten(1).norm(dim=1) * vp_scale(sigma) / sigma**2
    assert_close(length, torch.ones(4, dtype=torch.float64), **EXACT)
    raw = displacement(term, x, sigma, y)
    cosine = torch.cosine_similarity(got.flatten(1), raw.flatten(1))
    assert_close(cosine, torch.ones(4, dtype=torch.float64), **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_gradient_is_no_displacement(dtype):
    """Of a classifier that is sure, beside one of an image with a gradient; and without noise."""
    x, sigma, y = noisy(tilted(), [0.5, 0.5, 0.0], dtype=dtype)
    score = torch.zeros_like(x)
    score[1] = 1e-2
    got = displacement(UnitNorm(Slope(score)), x, sigma, y)
    assert not got[[0, 2]].any() and got[1].norm() > 0.1 and got.isfinite().all()


@pytest.mark.parametrize("floor", [0.0, -1.0, math.nan, math.inf])
def test_a_floor_that_is_none_is_refused(floor):
    with pytest.raises(ValueError, match="floor bounds the norm"):
        UnitNorm(ClassifierGuidance(ExactClassifier(tilted())), floor)


def test_a_reference_term_has_no_gradient():
    with pytest.raises(ValueError, match=r"UnitNorm changes a gradient, and ClassifierFree"):
        UnitNorm(ClassifierFree())
