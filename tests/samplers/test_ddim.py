"""DDIM, against recorded steps, an independent implementation and exact moments."""

import math

import pytest
import torch
from oracles import ExactDenoiser, ListedGrid, RecordedNoise, no_noise, plane
from recorded_steps import CASES, recorded_steps
from sampler_runs import assert_moments
from torch.testing import assert_close

from robustguide.guidance import Guidance
from robustguide.interfaces import Denoiser, Prediction
from robustguide.noise import ChainGrid, RhoGrid, linear_levels, noise_like
from robustguide.samplers import DDIM


class Given(Denoiser):
    """Always the same denoised image."""

    num_classes, shape = 10, (3, 4, 4)

    def __init__(self, denoised):
        super().__init__()
        self.denoised = denoised

    def predict(self, x, sigma, y):
        return Prediction(self.denoised)


class Displaced(Guidance):
    """Always the same displacement."""

    def __init__(self, displacement):
        super().__init__()
        self.displacement = displacement

    def forward(self, step):
        return self.displacement


def one_step(step, eta, terms):
    """The first step that the sampler takes from a recorded state, and where it went towards."""
    seen = []
    grid = ListedGrid(tuple(dict.fromkeys((step.sigma, step.sigma_next, 0.0))))
    sampler = DDIM(grid, clip=1.0, state_dtype="float64", eta=eta)
    noise = RecordedNoise([step.noise] * 2)
    y = torch.zeros(1, dtype=torch.long)
    last = sampler(Given(step.denoised), terms, step.x, y, noise, seen.append)
    x = seen[1].x if step.sigma_next > 0 else last
    return step.in_chain(x), seen[0].denoised[0]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_recorded_steps_with_and_without_guidance(case, eta):
    """The reference takes coefficients from a float32 alpha_bar; its rounding is allowed for."""
    share = 4e-4 if (case, eta) == (4, 1.0) else 3e-5
    for step in recorded_steps(case):
        for name, terms in (
            ("ddim", {}),
            ("ddim_guided", {"given": Displaced(step.displacement)}),
        ):
            x, _ = one_step(step, eta, terms)
            want = step.results[f"{name}_eta{eta}"]
            assert_close(x, want, rtol=0, atol=share * want.abs().max().item())


@pytest.mark.parametrize("case", CASES)
def test_recorded_guided_clean_images_are_not_clipped_again(case):
    for step in recorded_steps(case):
        _, denoised = one_step(step, 0.0, {"given": Displaced(step.displacement)})
        want = step.results["condition_score.pred_xstart"]
        rounding = 3e-5 * want.abs().max().item() if case == 6 else 1e-6
        assert_close(denoised, want, rtol=1e-5, atol=rounding)
        keep = (step.sigma_next / step.sigma) ** 2
        mean = torch.lerp(denoised, step.x[0], keep)
        assert_close(
            step.in_chain(mean[None]), step.results["condition_score.mean"], rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("case", CASES)
def test_the_direction_is_the_noise_that_the_clean_image_leaves(case):
    for step in recorded_steps(case):
        for name, denoised in (("clip0", step.denoised), ("clip1", step.denoised.clamp(-1, 1))):
            eps_hat = ((step.x - denoised) / step.sigma)[0]
            want = step.results[f"{name}.eps_from_xstart"]
            assert_close(eps_hat, want, rtol=0, atol=3e-5 * want.abs().max().item())


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_samples_have_the_moments_of_the_mixture(eta):
    mixture, generator, n = plane(), torch.Generator().manual_seed(0), 2000
    sampler, denoiser = DDIM(RhoGrid(150, 0.005, 80.0), eta=eta), ExactDenoiser(mixture)
    x = sampler.start(torch.randn(n, *mixture.shape, generator=generator), denoiser)
    null = torch.full((n,), 3)
    x = sampler(denoiser, None, x, null, lambda x: noise_like(x, generator))
    assert_moments(mixture, x)


def test_a_chain_starts_where_its_spacing_does():
    sampler, seen = DDIM(ChainGrid(linear_levels(), "ddim25")), []
    denoiser = ExactDenoiser(plane())
    x = sampler.start(torch.ones(1, 1, 1, 2), denoiser)
    sampler(denoiser, None, x, torch.zeros(1).long(), no_noise, seen.append)
    levels = linear_levels()
    assert [o.place.sigma for o in seen] == levels.sigmas[960::-40].tolist()
    assert [o.place.index for o in seen] == list(range(25))
    assert {o.place.count for o in seen} == {25}


@pytest.mark.parametrize("eta", [-0.1, 1.5, math.nan])
def test_eta_outside_the_unit_interval_is_refused(eta):
    with pytest.raises(ValueError, match="eta"):
        DDIM(RhoGrid(), eta=eta)


@pytest.mark.parametrize("clip", [0.0, -1.0, math.nan, math.inf])
def test_a_bound_that_is_none_is_refused(clip):
    with pytest.raises(ValueError, match="clip"):
        DDIM(RhoGrid(), clip=clip)
