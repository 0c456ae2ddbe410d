"""EDM's sampler, against recorded runs and exact solutions."""

import math
from itertools import pairwise

import pytest
import torch
from golden_files import load
from oracles import (
    ExactClassifier,
    ExactDenoiser,
    RecordedNoise,
    no_noise,
    noisy,
    plane,
    tilted,
)
from sampler_runs import assert_moments, assert_run_is_recorded, flow_error, recorded_mixture
from torch.testing import assert_close

from robustguide.denoisers import Unconditional
from robustguide.guidance import (
    ClassifierGuidance,
    Guidance,
    Guided,
    Reference,
    Scaled,
    Within,
)
from robustguide.interfaces import Denoiser, Prediction
from robustguide.noise import RhoGrid, linear_levels, noise_like
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
    ("run", "arguments"),
    [("heun", {}), ("heun_b", {}), ("heun_churn", CHURN | {"churn": 4.0})],
)
@pytest.mark.parametrize("state_dtype", ["float64", "float32"])
def test_recorded_runs_of_an_independent_implementation(run, arguments, state_dtype):
    noise = no_noise
    if arguments:
        _, tensors = load("k_samplers")
        levels = tensors["out.sigmas.karras10"][:-1].tolist()
        acts = [0.05 <= sigma <= 50 for sigma in levels]
        recorded = tensors[f"in.{run}.noise"]
        noise = RecordedNoise(d for d, act in zip(recorded, acts, strict=True) if act)
    assert_run_is_recorded(run, Heun, state_dtype, noise, **arguments)
    assert noise is no_noise or not noise.draws


def test_the_mixture_of_the_tests_is_the_recorded_one():
    mixture, _, tensors = recorded_mixture()
    got = ExactDenoiser(mixture)(tensors["in.toy_x"], tensors["in.toy_sigma"], torch.full((3,), 3))
    assert_close(got, tensors["out.toy_denoised"], rtol=1e-12, atol=1e-12)


def test_the_error_falls_with_the_square_of_the_steps():
    errors = [
        flow_error(Heun(RhoGrid(steps, 0.01, 10.0), state_dtype="float64"))
        for steps in (33, 65, 129, 257)  # n levels are n - 1 intervals
    ]
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
    assert_moments(mixture, x)


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


def by_hand(denoiser, terms, sampler, x, y):
    """EDM's loop, guided in both evaluations of a step or in the first alone."""
    guided = Guided(denoiser, terms, sampler.clip)
    bare = Guided(denoiser, None, sampler.clip)
    second = guided if sampler.guides_corrector else bare
    for sigma, sigma_next in pairwise(sampler.grid.sigmas()):
        slope = (x - guided(x, x.new_full((len(x),), sigma), y)) / sigma
        euler = x + (sigma_next - sigma) * slope
        if sigma_next > 0:
            ahead = second(euler, x.new_full((len(x),), sigma_next), y)
            slope = (slope + (euler - ahead) / sigma_next) / 2
        x = x + (sigma_next - sigma) * slope
    return x


@pytest.mark.parametrize("clip", [None, 1.5])
@pytest.mark.parametrize("guides_corrector", [True, False])
def test_guidance_of_one_or_both_evaluations(guides_corrector, clip):
    """Six steps have five correctors; the terms' networks are asked where they guide alone."""
    mixture = tilted()
    denoiser, classifier = ExactDenoiser(mixture), ExactClassifier(mixture)
    reference, watcher = ExactDenoiser(tilted(seed=1)), Watcher()
    terms = {
        "classifier": Scaled(ClassifierGuidance(classifier), 1.5),
        "reference": Scaled(Reference(reference), 0.5),
        "watcher": watcher,
    }
    grid = RhoGrid(6, 0.1, 10.0)
    sampler = Heun(grid, clip, "float64", guides_corrector=guides_corrector)
    start, _, y = noisy(mixture, [10.0] * 4)
    got = sampler(denoiser, terms, start, y, no_noise)
    asked = 11 if guides_corrector else 6
    assert denoiser.calls == [4] * 11
    assert classifier.calls == reference.calls == [4] * asked
    assert [place.corrector for place in watcher.places].count(True) == asked - 6
    want = by_hand(ExactDenoiser(mixture), terms, sampler, start, y)
    assert_close(got, want, rtol=1e-10, atol=1e-10)
    assert sampler(ExactDenoiser(mixture), None, start, y, no_noise).sub(got).abs().max() > 0.1


class Steady(Guidance):
    """The same displacement everywhere."""

    def forward(self, step):
        return torch.ones_like(step.x)


class Zero(ExactDenoiser):
    """Sees nothing but 0."""

    def predict(self, x, sigma, y):
        return Prediction(torch.zeros_like(x))


def test_an_unguided_corrector_halves_what_guidance_does():
    """For small steps: with a guided image of 1 the flow ends at 1, by turns with 0 at 1/2."""
    denoiser, y = Zero(plane()), torch.zeros(1).long()
    start = torch.full((1, 1, 1, 2), 10.0).double()
    for guides_corrector, want in ((True, 1.0), (False, 0.5)):
        sampler = Heun(
            RhoGrid(400, 0.01, 10.0), state_dtype="float64", guides_corrector=guides_corrector
        )
        seen = []
        sampler(denoiser, {"steady": Steady()}, start, y, no_noise, seen.append)
        got = seen[-1].x.mean().item()  # before the last step, which has no corrector
        assert got == pytest.approx(want + (10.0 - want) * 0.001, abs=0.02)


def test_churn_moves_a_chain_between_levels_of_its_table():
    """Both evaluations of a step are at entries; the noise fills the way between two of them."""
    table = linear_levels(50)
    entries = {*table.sigmas.tolist()}

    class Chained(ExactDenoiser):
        """Knows the levels of the table alone."""

        def snap(self, sigma):
            return table.snap(sigma)

        def predict(self, x, sigma, y):
            levels.append(sigma[0].item())
            return super().predict(x, sigma, y)

    levels, draws = [], []
    denoiser = Chained(plane())
    sampler = Heun(RhoGrid(12, 0.02, 30.0), churn=4.0, churn_max=20.0, state_dtype="float64")

    def ones(x):
        draws.append(x)
        return torch.ones_like(x)

    seen, y = [], torch.zeros(1).long()
    sampler(denoiser, None, torch.zeros(1, 1, 1, 2).double(), y, ones, seen.append)
    assert {*levels} <= entries
    visited = sampler.levels(denoiser)
    raised = [table.snap(s * (1 + sampler.gamma(s, len(visited) - 1))) for s in visited[:-1]]
    assert [observation.place.sigma for observation in seen] == raised
    jumps = [(s, up) for s, up in zip(visited[:-1], raised, strict=True) if up > s]
    assert len(draws) == len(jumps) >= 4
    churned = [o for o, s in zip(seen, visited[:-1], strict=True) if o.place.sigma > s]
    for (sigma, up), before, after in zip(jumps, draws, churned, strict=True):
        assert_close(after.x - before, torch.full_like(before, math.sqrt(up**2 - sigma**2)))


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
