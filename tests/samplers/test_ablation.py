"""EDM's ablation sampler: recorded runs, other methods that it contains, and its order."""

import math

import pytest
import torch
from golden_files import load
from oracles import ExactDenoiser, ListedGrid, no_noise, plane
from recorded_edm import denoiser, labels
from sampler_runs import assert_moments, assert_run_is_recorded, flow_error
from torch.testing import assert_close

from robustguide.denoisers import EpsDenoiser
from robustguide.guidance import Guidance
from robustguide.noise import (
    ExponentialGrid,
    LinearTime,
    RhoGrid,
    RootTime,
    VPGrid,
    VPTime,
    cosine_levels,
    noise_like,
    vp_time,
)
from robustguide.samplers import DDIM, Heun, RungeKutta, Unscaled, VPScaling

TIMES = {"linear": LinearTime(), "root": RootTime(), "vp": VPTime()}
SCALINGS = {"none": Unscaled(), "vp": VPScaling()}
RECORDED = {
    "edm_vp_song_ddpmpp.abl_euler_vp": dict(
        grid=VPGrid(6), time=VPTime(), scaling=VPScaling(), alpha=None
    ),
    "edm_ve_song_ncsnpp.abl_heun_ve": dict(grid=ExponentialGrid(6, 0.02, 100), time=RootTime()),
}


@pytest.mark.parametrize("key", RECORDED)
def test_recorded_runs(key):
    description, tensors = load("edm_ablation_samplers")
    (settings,) = [run for run in description["runs"] if run["key"] == key]
    _, _, denoise = denoiser(settings["weights"])
    sampler = RungeKutta(**RECORDED[key], state_dtype="float64")
    x, asked = sampler.start(tensors[f"in.{key}.latents"], denoise), Asked()
    y = labels(tensors, f"in.{key}.labels_onehot", len(x))
    x = sampler(denoise, {"asked": asked}, x, y, no_noise)
    tolerance = settings["tolerance"]
    atol = tolerance["atol"][f"out.{key}.x"]
    assert_close(x, tensors[f"out.{key}.x"], rtol=tolerance["rtol"], atol=atol)
    assert len(asked.sigmas) == settings["network_calls"]
    assert asked.sigmas == pytest.approx(tensors[f"out.{key}.net_sigmas"].tolist(), rel=1e-9)


class Asked(Guidance):
    """Notes the levels at which it is asked, and moves nothing."""

    def __init__(self):
        super().__init__()
        self.sigmas = []

    def forward(self, step):
        self.sigmas.append(step.place.sigma)
        return torch.zeros_like(step.x)


@pytest.mark.parametrize("run", ["heun", "heun_b"])
def test_along_sigma_itself_it_is_heuns_method(run):
    assert_run_is_recorded(run, RungeKutta, "float64")


def test_without_a_second_evaluation_it_is_eulers_method():
    assert_run_is_recorded("euler", RungeKutta, "float64", alpha=None)


@pytest.mark.parametrize("guides_corrector", [True, False])
def test_churn_is_that_of_heun(guides_corrector):
    common = dict(grid=RhoGrid(8), churn=3.0, churn_min=0.05, churn_max=20.0, churn_noise=1.01)
    common |= dict(guides_corrector=guides_corrector, state_dtype="float64")
    runs = []
    for cls in (Heun, RungeKutta):
        generator = torch.Generator().manual_seed(0)
        sampler, exact = cls(**common), ExactDenoiser(plane())
        x = sampler.start(torch.ones(2, 1, 1, 2), exact)
        y = torch.tensor([0, 1])
        noise = lambda x, generator=generator: noise_like(x, generator)  # noqa: E731
        runs.append(sampler(exact, {"asked": Asked()}, x, y, noise))
    assert_close(runs[0], runs[1], rtol=1e-12, atol=1e-12)


ALL = [(time, scaling, 1.0) for time in TIMES for scaling in SCALINGS]


@pytest.mark.parametrize(
    ("time", "scaling", "alpha"), [*ALL, *(("vp", "vp", alpha) for alpha in (None, 0.5, 2 / 3))]
)
def test_the_error_falls_with_the_order_of_the_method(time, scaling, alpha):
    methods = dict(time=TIMES[time], scaling=SCALINGS[scaling], alpha=alpha)
    errors = [
        flow_error(RungeKutta(RhoGrid(steps, 0.1, 5.0), **methods, state_dtype="float64"))
        for steps in (33, 65)  # n levels are n - 1 intervals
    ]
    assert errors[1] < 0.05
    assert errors[0] / errors[1] == pytest.approx(2.0 if alpha is None else 4.0, rel=0.1)


def test_the_second_evaluation_lies_within_the_step_as_time_counts():
    exact, y = ExactDenoiser(plane()), torch.zeros(1, dtype=torch.long)
    asked = Asked()
    sampler = RungeKutta(ListedGrid((5.0, 1.0, 0.0)), time=RootTime(), alpha=0.5)
    sampler(exact, {"asked": asked}, torch.ones(1, 1, 1, 2), y, no_noise)
    # The last step has no second evaluation: nothing can be asked at a level of 0.
    assert asked.sigmas == pytest.approx([5.0, math.sqrt((25 + 1) / 2), 1.0])


def test_eulers_method_along_sigma_is_ddim():
    """Whatever the scaling of the chain: DDIM's step is exact where the denoised image stays."""
    exact, y = ExactDenoiser(plane()), torch.zeros(3, dtype=torch.long)
    grid, noise = ExponentialGrid(9), torch.randn(3, 1, 1, 2, generator=torch.manual_seed(0))
    ends = [
        sampler(exact, None, sampler.start(noise, exact), y, no_noise)
        for sampler in (RungeKutta(grid, alpha=None), DDIM(grid))
    ]
    assert_close(*ends, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("churn", [0.0, 10.0])
def test_the_samples_have_the_moments_of_the_mixture(churn):
    """On the published grid that joins 0.002 and 80 along a VP time with beta_min below 0."""
    mixture, generator, n = plane(), torch.Generator().manual_seed(0), 2000
    time = vp_time(0.002, 80.0)
    assert time.beta_min < 0
    sampler = RungeKutta(RhoGrid(32), time=time, scaling=VPScaling(), churn=churn, alpha=2 / 3)
    exact = ExactDenoiser(mixture)
    x = sampler.start(torch.randn(n, *mixture.shape, generator=generator), exact)
    noise = (lambda x: noise_like(x, generator)) if churn else no_noise
    assert_moments(mixture, sampler(exact, None, x, torch.full((n,), 3), noise))


class Silent(torch.nn.Module):
    """Says that there is no noise."""

    def forward(self, x_t, t):
        return torch.zeros_like(x_t)


def test_a_chain_is_asked_at_its_own_levels():
    levels = cosine_levels()
    chained = EpsDenoiser(Silent(), levels, 0, (1, 1, 2))
    seen, sampler = [], RungeKutta(RhoGrid(12), time=RootTime(), churn=4.0, alpha=None)
    x, y = sampler.start(torch.ones(1, 1, 1, 2), chained), torch.zeros(1, dtype=torch.long)
    sampler(chained, None, x, y, torch.randn_like, seen.append)
    assert {observation.place.sigma for observation in seen} <= set(levels.sigmas)


@pytest.mark.parametrize("alpha", [0.0, -0.5, 1.5, math.nan])
def test_an_alpha_outside_the_step_is_refused(alpha):
    with pytest.raises(ValueError, match=r"alpha must lie in \(0, 1\] or be null"):
        RungeKutta(alpha=alpha)


def test_scalings_and_their_slopes():
    for scaling in SCALINGS.values():
        for sigma in (0.01, 1.0, 30.0):
            step = 1e-6 * sigma
            up, down = math.log(scaling.s(sigma + step)), math.log(scaling.s(sigma - step))
            assert scaling.slope(sigma) == pytest.approx((up - down) / (2 * step), abs=1e-6)
    assert VPScaling().s(math.sqrt(3)) == pytest.approx(0.5)
