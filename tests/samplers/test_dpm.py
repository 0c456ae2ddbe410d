"""DPM-Solver++(2M), against recorded runs, its published form and exact solutions."""

import math
from itertools import pairwise

import pytest
import torch
from golden_files import load, weights
from oracles import ExactClassifier, ExactDenoiser, ListedGrid, no_noise, noisy, plane, tilted
from sampler_runs import assert_run_is_recorded, flow_error
from torch.testing import assert_close

from robustguide.denoisers import EpsDenoiser, Unconditional
from robustguide.guidance import (
    ClassifierFree,
    ClassifierGuidance,
    Guidance,
    Guided,
    Scaled,
    Within,
)
from robustguide.nets import UNet
from robustguide.noise import ChainGrid, ExponentialGrid, RhoGrid, linear_levels
from robustguide.samplers import DPMSolver2M
from robustguide.samplers.dpm import extrapolation


@pytest.mark.parametrize("run", ["dpmpp_2m", "dpmpp_2m_b", "dpmpp_2m_vp"])
@pytest.mark.parametrize("state_dtype", ["float64", "float32"])
def test_recorded_runs_of_an_independent_implementation(run, state_dtype):
    assert_run_is_recorded(run, DPMSolver2M, state_dtype)


@pytest.mark.parametrize(
    "grid", [lambda n: RhoGrid(n, 0.01, 10.0), lambda n: ExponentialGrid(n, 0.01, 10.0)]
)
def test_the_error_falls_with_the_square_of_the_steps(grid):
    errors = [
        flow_error(DPMSolver2M(grid(steps), state_dtype="float64")) for steps in (33, 65, 129, 257)
    ]
    assert errors[0] < 0.02
    assert [a / b for a, b in pairwise(errors)] == pytest.approx([4.0, 4.0, 4.0], rel=0.15)


def test_the_change_is_weighed_by_half_the_ratio_of_the_steps():
    assert extrapolation(8.0, 4.0, 2.0) == pytest.approx(0.5)
    assert extrapolation(8.0, 4.0, 1.0) == pytest.approx(1.0)
    assert extrapolation(16.0, 4.0, 2.0) == pytest.approx(0.25)
    assert extrapolation(8.0, 4.0, 0.0) == 0.0


def published(guided, levels, x, y):
    """Lu et al. (2022), Alg. 2, in their lambda, alpha and sigma of the chain, to alpha = 1.

    Args:
        guided: Denoised image of x in our units.
        levels: Our noise levels; theirs are alpha = 1 / sqrt(1 + s**2), sigma = s alpha.
        x: First state, in units of the chain.
    """
    alphas = [1 / math.sqrt(1 + s**2) for s in levels]
    sigmas = [s * alpha for s, alpha in zip(levels, alphas, strict=True)]
    lambdas = [math.log(a / s) if s else math.inf for a, s in zip(alphas, sigmas, strict=True)]
    outputs = []
    for i in range(1, len(levels)):
        level = x.new_full((len(x),), levels[i - 1])
        outputs.append(guided(x / alphas[i - 1], level, y))
        h = lambdas[i] - lambdas[i - 1]
        towards = outputs[-1]
        if 1 < i < len(levels) - 1:
            r = (lambdas[i - 1] - lambdas[i - 2]) / h
            towards = (1 + 1 / (2 * r)) * outputs[-1] - 1 / (2 * r) * outputs[-2]
        x = sigmas[i] / sigmas[i - 1] * x - alphas[i] * math.expm1(-h) * towards
    return x


@pytest.mark.parametrize("kind", ["spread", "stride", "between_levels"])
def test_the_published_form_on_a_network_of_a_chain(kind):
    """With learned variances, of which it makes no use."""
    description, tensors = load("gd_unet_adm")
    net = UNet(**description["constructor"])
    net.load_state_dict(weights(tensors))
    net.eval().requires_grad_(False)
    levels = linear_levels(interpolated=kind == "between_levels")
    grid = {
        "spread": ChainGrid(levels, "10"),
        "stride": ChainGrid(levels, "ddim8"),
        "between_levels": RhoGrid(8, *levels.sigmas[[0, -1]].tolist()),
    }[kind]
    arguments = {"has_null": False, "learns_variance": True}
    denoiser = EpsDenoiser(net, levels, 10, (3, 16, 16), **arguments)
    sampler, y = DPMSolver2M(grid, clip=1.0, state_dtype="float64"), torch.tensor([1, 7])
    x = sampler.start(load("gd_trajectories")[1]["in.x_T"], denoiser)
    got = sampler(denoiser, None, x, y, no_noise)
    x_t = x / math.sqrt(1 + grid.sigmas()[0] ** 2)
    want = published(Guided(denoiser, None, clip=1.0), grid.sigmas(), x_t, y)
    assert_close(got, want, rtol=0, atol=1e-6)  # the network's own arithmetic is float32
    assert got.abs().max() <= 1.0  # the last step ends at the clipped image itself


@pytest.mark.parametrize("kind", ["score", "reference", "both"])
def test_all_terms_move_the_image_before_it_is_extrapolated(kind):
    mixture = tilted()
    denoiser, grid = ExactDenoiser(mixture), RhoGrid(7, 0.05, 10.0)
    terms = {
        "score": Scaled(ClassifierGuidance(ExactClassifier(mixture)), 1.5),
        "reference": Scaled(ClassifierFree(), 0.8),
    }
    terms = terms if kind == "both" else {kind: terms[kind]}
    start, _, y = noisy(mixture, [10.0] * 4)
    sampler, seen = DPMSolver2M(grid, state_dtype="float64"), []
    got = sampler(denoiser, terms, start, y, no_noise, seen.append)
    x_t = start / math.sqrt(1 + 10.0**2)
    want = published(Guided(denoiser, terms), grid.sigmas(), x_t, y)
    assert_close(got, want, rtol=1e-9, atol=1e-9)
    guided = Guided(denoiser, terms)
    for observation in seen:  # what is shown is the guided image, not the extrapolated one
        sigma = start.new_full((4,), observation.place.sigma)
        assert_close(observation.denoised, guided(observation.x, sigma, y))


def test_guidance_by_the_exact_classifier_follows_the_flow_of_the_class():
    """Of second order too: the end of the flow of a Gaussian class is known."""
    mixture, y = tilted(), torch.full((3,), 1)
    generator = torch.Generator().manual_seed(0)
    unit = torch.randn(3, *mixture.shape, generator=generator)
    terms = {"classifier": ClassifierGuidance(ExactClassifier(mixture))}
    denoiser, errors = Unconditional(ExactDenoiser(mixture)), []
    for steps in (51, 101, 201):
        sampler, seen = DPMSolver2M(RhoGrid(steps, 0.01, 20.0), state_dtype="float64"), []
        start = sampler.start(unit, denoiser)
        sampler(denoiser, terms, start, y, no_noise, seen.append)
        variances, axes = mixture.variances[1], mixture.axes[1]
        mean = mixture.means[1].flatten()
        shrink = ((variances + 0.01**2) / (variances + 20.0**2)).sqrt()
        exact = mean + ((start.flatten(1) - mean) @ axes * shrink) @ axes.T
        errors.append((seen[-1].x.flatten(1) - exact).abs().max().item())
    assert errors[0] < 0.03
    assert [a / b for a, b in pairwise(errors)] == pytest.approx([4.0, 4.0], rel=0.2)


class Counter(Guidance):
    """Counts in its memory how often it was asked, and moves nothing."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, step):
        memory = step.own(self)
        memory["count"] = memory.get("count", 0) + 1
        self.seen.append((memory["count"], step.place))
        return torch.zeros_like(step.x)


def test_every_step_asks_once_and_every_call_begins_anew():
    counter, inside, grid = Counter(), Counter(), RhoGrid(5, 0.1, 10.0)
    terms = {"counter": counter, "inside": Within(inside, 1.0, 5.0)}
    denoiser, sampler = ExactDenoiser(plane()), DPMSolver2M(grid)
    x = sampler.start(torch.ones(2, 1, 1, 2), denoiser)
    for _ in range(2):  # the same sampler object: it keeps nothing between calls
        sampler(denoiser, terms, x, torch.zeros(2).long(), no_noise)
    assert denoiser.calls == [2] * 10
    assert [count for count, _ in counter.seen] == [1, 2, 3, 4, 5] * 2
    places = [place for _, place in counter.seen[:5]]
    assert [place.sigma for place in places] == list(grid.sigmas()[:-1])
    assert [(place.index, place.count, place.corrector) for place in places] == [
        (index, 5, False) for index in range(5)
    ]
    assert [count for count, _ in inside.seen] == [1, 2] * 2


def test_one_step_and_two_are_of_first_order():
    mixture = plane()
    denoiser = ExactDenoiser(mixture)
    x, _, y = noisy(mixture, [4.0, 4.0])
    sigma = torch.full((2,), 4.0).double()
    for levels in ((4.0, 0.0), (4.0, 1.0, 0.0)):
        seen = []
        sampler = DPMSolver2M(ListedGrid(levels), state_dtype="float64")
        last = sampler(denoiser, None, x, y, no_noise, seen.append)
        assert_close(last, seen[-1].denoised)
        if len(seen) > 1:
            denoised = denoiser(x, sigma, y)
            assert_close(seen[1].x, denoised + 0.25 * (x - denoised))
