"""EDM's sampler, against recorded runs and exact solutions."""

import math
from itertools import pairwise

import pytest
import torch
from golden_files import load
from oracles import (
    ExactClassifier,
    ExactDenoiser,
    ListedGrid,
    Mixture,
    RecordedNoise,
    no_noise,
    plane,
    tilted,
)
from torch.testing import assert_close

from robustguide.denoisers import Unconditional
from robustguide.guidance import ClassifierGuidance, Guidance, Within
from robustguide.interfaces import Denoiser, Prediction
from robustguide.noise import RhoGrid, noise_like
from robustguide.samplers import Heun

CHURN = {"churn": 40.0, "churn_min": 0.05, "churn_max": 50.0, "churn_noise": 1.003}


class Playback(Denoiser):
    """Recorded answers in their order, if it is asked at the recorded levels."""

    num_classes, shape = 10, (3, 16, 16)

    def __init__(self, sigmas, answers):
        super().__init__()
        self.sigmas, self.answers = sigmas, answers
        self.calls = 0

    def snap(self, sigma):
        """As a network that rounds to the levels it knows: here, those that were recorded."""
        levels = self.sigmas.tolist()
        return min(levels, key=lambda level: abs(level - sigma)) if sigma > 0 else 0.0

    def predict(self, x, sigma, y):
        assert_close(sigma, self.sigmas[self.calls].expand(len(x)), rtol=1e-12, atol=0)
        self.calls += 1
        return Prediction(self.answers[self.calls - 1].to(x))


@pytest.mark.parametrize(
    ("run", "arguments"),
    [
        ("edm_dhariwal.heun10", {}),
        ("edm_dhariwal.churn10", CHURN),
        ("edm_iddpm_dhariwal.heun6", {}),
        ("edm_vp_song_ddpmpp.heun6", {}),
    ],
)
def test_recorded_runs_of_edm(run, arguments):
    description, tensors = load("edm_samplers")
    (settings,) = [r for r in description["runs"] if r["key"] == run]
    sigmas = tensors[f"out.{run}.net_sigmas"]
    denoiser = Playback(sigmas, tensors[f"out.{run}.denoised"])
    grid = RhoGrid(settings["arguments"]["num_steps"])
    sampler = Heun(grid, state_dtype="float64", **arguments)
    draws = []
    if arguments:  # EDM draws at every step, and multiplies by 0 where churn does not act
        recorded = tensors[f"in.{run}.noise"]
        acts = [0.05 <= sigma <= 50 for sigma in grid.sigmas()[:-1]]
        draws = [draw for draw, act in zip(recorded, acts, strict=True) if act]
    noise = RecordedNoise(draws)
    x = sampler.start(tensors[f"in.{run}.latents"], denoiser)
    x = sampler(denoiser, None, x, torch.zeros(len(x)).long(), noise)
    tolerance = settings["tolerance"]
    atol = tolerance["atol"][f"out.{run}.x"]
    assert_close(x, tensors[f"out.{run}.x"], rtol=tolerance["rtol"], atol=atol)
    assert denoiser.calls == settings["network_calls"]
    assert not noise.draws


@pytest.mark.parametrize(
    ("run", "grid", "arguments"),
    [
        ("heun", "karras10", {}),
        ("heun_b", "karras7_rho3", {}),
        ("heun_churn", "karras10", CHURN | {"churn": 4.0}),
    ],
)
@pytest.mark.parametrize("state_dtype", ["float64", "float32"])
def test_recorded_runs_of_an_independent_implementation(run, grid, arguments, state_dtype):
    description, tensors = load("k_samplers")
    variances = tensors["in.toy_variances"].reshape(-1, 1, 1) * torch.eye(32)
    mixture = Mixture(tensors["in.toy_means"], variances, tensors["in.toy_weights"])
    levels = tuple(tensors[f"out.sigmas.{grid}"].tolist())
    sampler, seen = Heun(ListedGrid(levels), state_dtype=state_dtype, **arguments), []
    noise = no_noise
    if arguments:
        acts = [0.05 <= sigma <= 50 for sigma in levels[:-1]]
        recorded = tensors[f"in.{run}.noise"]
        noise = RecordedNoise(d for d, act in zip(recorded, acts, strict=True) if act)
    denoiser = ExactDenoiser(mixture)
    x = sampler.start(tensors["in.x_unit"], denoiser)
    x = sampler(denoiser, None, x, torch.full((3,), 3), noise, seen.append)
    name = "x" if state_dtype == "float64" else "x_float32"
    close = description["tolerance"][name]
    assert_close(x, tensors[f"out.{run}.{name}"], **close)
    states = torch.stack([observation.x for observation in seen]).double()
    assert_close(states, tensors[f"out.{run}.x_per_step"], **close)


def test_the_mixture_of_the_tests_is_the_recorded_one():
    _, tensors = load("k_samplers")
    variances = tensors["in.toy_variances"].reshape(-1, 1, 1) * torch.eye(32)
    mixture = Mixture(tensors["in.toy_means"], variances, tensors["in.toy_weights"])
    got = ExactDenoiser(mixture)(tensors["in.toy_x"], tensors["in.toy_sigma"], torch.full((3,), 3))
    assert_close(got, tensors["out.toy_denoised"], rtol=1e-12, atol=1e-12)


def gaussian(variance):
    """One class, N(m, variance)."""
    mean = torch.tensor([0.7, -0.3], dtype=torch.float64).reshape(1, 1, 1, 2)
    return Mixture(mean, variance * torch.eye(2)[None])


def error_of(steps, variance=0.25, sigma_min=0.01, sigma_max=10.0):
    """Largest error at sigma_min against m + (x_T - m) sqrt((v + s**2) / (v + sigma_max**2))."""
    mixture, seen = gaussian(variance), []
    denoiser = ExactDenoiser(mixture)
    sampler = Heun(RhoGrid(steps, sigma_min, sigma_max), state_dtype="float64")
    noise = torch.tensor([[1.0, -0.5], [0.2, 2.0]]).reshape(2, 1, 1, 2)
    start, y = sampler.start(noise, denoiser), torch.zeros(2, dtype=torch.long)
    sampler(denoiser, None, start, y, no_noise, seen.append)
    shrink = math.sqrt((variance + sigma_min**2) / (variance + sigma_max**2))
    exact = mixture.means + (start - mixture.means) * shrink
    return (seen[-1].x - exact).abs().max().item()


def test_the_error_falls_with_the_square_of_the_steps():
    errors = [error_of(steps) for steps in (33, 65, 129, 257)]  # n levels are n - 1 intervals
    ratios = [a / b for a, b in pairwise(errors)]
    assert errors[0] < 0.01
    assert ratios == pytest.approx([4.0, 4.0, 4.0], rel=0.1)


def test_guidance_by_the_exact_classifier_follows_the_flow_of_the_class():
    """The guided marginal flow is the conditional flow; for a Gaussian class its end is known."""
    mixture, y = tilted(), torch.full((3,), 1)
    sampler = Heun(RhoGrid(60, 0.01, 20.0), state_dtype="float64")
    generator = torch.Generator().manual_seed(0)
    denoiser = ExactDenoiser(mixture)
    start = sampler.start(torch.randn(3, *mixture.shape, generator=generator), denoiser)
    terms = {"classifier": ClassifierGuidance(ExactClassifier(mixture))}
    guided = sampler(Unconditional(denoiser), terms, start, y, no_noise)
    assert_close(guided, sampler(denoiser, None, start, y, no_noise), rtol=1e-9, atol=1e-9)
    variances, axes = mixture.variances[1], mixture.axes[1]
    mean = mixture.means[1].flatten()
    along = (start.flatten(1) - mean) @ axes * (variances / (variances + 20.0**2)).sqrt()
    assert_close(guided.flatten(1), mean + along @ axes.T, rtol=0, atol=0.01)


@pytest.mark.parametrize("churn", [0.0, 20.0])
def test_the_samples_have_the_moments_of_the_mixture(churn):
    mixture, generator, n = plane(), torch.Generator().manual_seed(0), 2000
    sampler, denoiser = Heun(RhoGrid(40), churn=churn), ExactDenoiser(mixture)
    x = sampler.start(torch.randn(n, *mixture.shape, generator=generator), denoiser)
    noise = (lambda x: noise_like(x, generator)) if churn else no_noise
    x = sampler(denoiser, None, x, torch.full((n,), 3), noise)
    mean, covariance = mixture.moments()
    centred = x.double().flatten(1) - mean
    products = centred[:, :, None] * centred[:, None, :]
    error = 4.5 / math.sqrt(n)
    assert (centred.mean(0).abs() < error * covariance.diagonal().sqrt()).all()
    assert ((products.mean(0) - covariance).abs() < error * products.std(0)).all()


class Watcher(Guidance):
    """Notes every place and level at which it is asked, and moves nothing."""

    def __init__(self):
        super().__init__()
        self.places, self.sigmas = [], []

    def forward(self, step):
        self.places.append(step.place)
        self.sigmas.append(step.sigma[0].item())
        return torch.zeros_like(step.x)


def test_both_evaluations_of_a_step_tell_where_they_are():
    watcher, inside, grid = Watcher(), Watcher(), RhoGrid(4, 0.1, 10.0)
    sampler = Heun(grid, churn=1.0, churn_max=5.0, state_dtype="float64")
    denoiser, y = ExactDenoiser(plane()), torch.zeros(2, dtype=torch.long)
    x = sampler.start(torch.ones(2, 1, 1, 2), denoiser)
    terms = {"watcher": watcher, "inside": Within(inside, 0.5, 5.0)}
    sampler(denoiser, terms, x, y, torch.randn_like)
    sigmas = grid.sigmas()
    raised = [s * (1.25 if s <= 5 else 1.0) for s in sigmas]
    want = [raised[0], sigmas[1], raised[1], sigmas[2], raised[2], sigmas[3], raised[3]]
    assert watcher.sigmas == pytest.approx(want)
    assert [place.sigma for place in watcher.places] == pytest.approx(want)
    assert [place.index for place in watcher.places] == [0, 0, 1, 1, 2, 2, 3]
    assert {place.count for place in watcher.places} == {4}
    assert [place.corrector for place in watcher.places] == [False, True] * 3 + [False]
    assert inside.sigmas == pytest.approx([s for s in want if 0.5 < s <= 5.0])


def test_churn_raises_the_level_by_at_most_the_root_of_two():
    sampler = Heun(churn=40.0, churn_min=0.05, churn_max=50.0)
    assert sampler.gamma(1.0, 10) == math.sqrt(2) - 1
    assert sampler.gamma(1.0, 160) == 0.25
    assert sampler.gamma(0.05, 160) == sampler.gamma(50.0, 160) == 0.25
    assert sampler.gamma(0.049, 160) == sampler.gamma(50.1, 160) == 0.0


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["churn", "churn_min", "churn_max", "churn_noise"])
def test_churn_that_cannot_be_is_refused(name, value):
    if (name, value) == ("churn_max", math.inf):
        assert Heun().churn_max == math.inf
    elif (name, value) == ("churn_min", math.inf):
        with pytest.raises(ValueError, match="churn_min <= churn_max"):
            Heun(churn_min=math.inf, churn_max=50.0)
    else:
        with pytest.raises(ValueError, match=name):
            Heun(**{name: value})
