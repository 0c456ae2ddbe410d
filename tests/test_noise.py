"""One noise coordinate, against the published schedules and against mathematics."""

import math

import numpy as np
import pytest
import torch
from golden_files import load
from torch.testing import assert_close

from robustguide.noise import (
    ChainGrid,
    Clipped,
    DiscreteLevels,
    ExponentialGrid,
    LinearTime,
    LogNormal,
    RhoGrid,
    RootTime,
    StridedGrid,
    TableGrid,
    UniformT,
    VPGrid,
    VPTime,
    alpha_bar_of,
    cosine_levels,
    expand,
    linear_levels,
    noise_like,
    perturb,
    respaced,
    scaled_linear_levels,
    sigma_of,
    vp_scale,
    vp_time,
)
from robustguide.samplers.ancestral import last_variance, posterior

SCHEDULES = {"linear": linear_levels, "cosine": cosine_levels}
RUNS = [(schedule, spacing) for schedule in SCHEDULES for spacing in (None, "250", "ddim25", "10")]


def chain_constants(sigmas):
    """The constants of a variance-preserving chain, from its ascending noise levels alone."""
    previous = [0.0, *sigmas[:-1]]
    steps = [posterior(s, s_next) for s, s_next in zip(sigmas, previous, strict=True)]
    keep, small, large, ratio = (np.array(values) for values in zip(*steps, strict=True))
    s, s_next = np.array(sigmas), np.array(previous)
    alpha_bar = np.array([alpha_bar_of(value) for value in sigmas])
    variance = small / (1 + s_next**2)
    clipped = np.array([last_variance(*sigmas[1::-1]), *variance[1:]])
    return {
        "alphas_cumprod": alpha_bar,
        "alphas_cumprod_prev": 1 / (1 + s_next**2),
        "alphas_cumprod_next": np.append(alpha_bar[1:], 0.0),
        "betas": large / (1 + s_next**2),
        "sqrt_alphas_cumprod": (1 + s**2) ** -0.5,
        "sqrt_one_minus_alphas_cumprod": s * (1 + s**2) ** -0.5,
        "log_one_minus_alphas_cumprod": np.log(s**2 / (1 + s**2)),
        "sqrt_recip_alphas_cumprod": (1 + s**2) ** 0.5,
        "sqrt_recipm1_alphas_cumprod": s,
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(clipped),
        "posterior_mean_coef1": (1 - keep) / (1 + s_next**2) ** 0.5,
        "posterior_mean_coef2": keep * ratio**-0.5,
    }


@pytest.mark.parametrize(("schedule", "spacing"), RUNS)
def test_all_constants_of_the_published_chains(schedule, spacing):
    _, tensors = load("gd_schedules")
    prefix = f"out.{schedule}.1000.{spacing or 'full'}."
    recorded = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    grid = ChainGrid(SCHEDULES[schedule](), spacing)
    assert grid.indices() == recorded.pop("timestep_map").tolist()
    constants = chain_constants(grid.sigmas()[-2::-1])
    assert len(recorded) >= 9
    # There alpha_bar comes from 1 - beta of the short chain, which cancels where beta is nearly 1.
    cancelled = np.finfo(np.float64).eps / (1 - recorded["betas"].max().item())
    for name, want in recorded.items():
        got = torch.from_numpy(constants[name])
        assert_close(got, want, rtol=max(1e-10, cancelled), atol=1e-14)


def test_levels_of_a_shorter_chain_have_rescaled_betas():
    assert_close(linear_levels(250).betas[[0, -1]], np.array([4e-4, 0.08]), rtol=1e-12, atol=0)
    assert len(cosine_levels(50)) == 50
    assert cosine_levels(50).betas[-1] == 0.999


def test_the_units_are_inverse_to_one_another():
    for sigma in (0.0, 1e-6, 0.3, 1.0, 80.0, 2e4):
        assert sigma_of(alpha_bar_of(sigma)) == pytest.approx(sigma, rel=1e-7, abs=1e-7)
    assert vp_scale(torch.tensor([0.0, math.sqrt(3)])).tolist() == pytest.approx([1.0, 2.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("interpolated", [False, True])
def test_every_level_finds_its_own_index(schedule, dtype, interpolated):
    levels = SCHEDULES[schedule](interpolated=interpolated)
    t = levels.t(torch.tensor(levels.sigmas.tolist(), dtype=dtype))
    assert t.dtype == torch.float32
    exact = not interpolated
    assert_close(t, torch.arange(1000.0), rtol=0, atol=0 if exact else 1e-3)


def test_t_is_clamped_beyond_the_ends():
    for interpolated in (False, True):
        levels = linear_levels(interpolated=interpolated)
        t = levels.t(torch.tensor([0.0, 1e-9, 1e9, math.inf]))
        assert t.tolist() == [0, 0, 999, 999]


def test_between_levels_t_is_rounded_or_interpolated_in_log_sigma():
    betas = linear_levels().betas.tolist()
    low, high = np.log(linear_levels().sigmas[[300, 301]])
    between = [math.exp(low + part * (high - low)) for part in (0.25, 0.45, 0.55)]
    sigma = torch.tensor(between, dtype=torch.float64)
    assert DiscreteLevels(betas).t(sigma).tolist() == [300, 300, 301]
    interpolated = DiscreteLevels(betas, interpolated=True).t(sigma)
    assert_close(interpolated, torch.tensor([300.25, 300.45, 300.55]), rtol=0, atol=1e-4)


def test_snap_gives_the_level_that_t_names():
    levels = linear_levels()
    for sigma in np.geomspace(1e-3, 1e3, 57).tolist():
        snapped = levels.snap(sigma)
        t = levels.t(torch.tensor([sigma], dtype=torch.float64)).long().item()
        assert snapped == levels.sigmas[t]
        assert levels.snap(snapped) == snapped
    assert levels.snap(0.0) == 0.0
    assert linear_levels(interpolated=True).snap(1.234) == 1.234


def test_sections_are_spaced_each_for_itself():
    assert respaced(10, "3,2") == [0, 2, 4, 5, 9]
    assert respaced(11, "1,2") == [0, 6, 10]  # the first section is the longer one
    assert respaced(1000, "5") == [0, 250, 500, 749, 999]  # halves round to even
    assert respaced(1000, "ddim25")[-1] == 960


@pytest.mark.parametrize(
    "spacing", ["0", "1", "1001", "600,600", "ddim0", "ddim600", "", "fast", "-5", "ddim"]
)
def test_a_spacing_that_cannot_be_is_refused(spacing):
    with pytest.raises(ValueError, match="levels"):
        ChainGrid(linear_levels(), spacing)


@pytest.mark.parametrize("betas", [[], [0.0, 0.1], [0.1, 1.0], [0.1, math.nan]])
def test_betas_outside_the_unit_interval_are_refused(betas):
    with pytest.raises(ValueError, match="betas"):
        DiscreteLevels(betas)


def test_rho_grid_at_the_published_levels():
    """Levels of 32 steps, as printed for limited-interval guidance."""
    sigmas = RhoGrid(32).sigmas()
    printed = {12: 6.464, 13: 4.999, 14: 3.829, 15: 2.902, 16: 2.174, 17: 1.609}
    printed |= {18: 1.174, 19: 0.845, 20: 0.598, 21: 0.415, 22: 0.283, 23: 0.189}
    assert {i: round(sigmas[i], 3) for i in printed} == printed
    assert len(sigmas) == 33
    assert sigmas[-1] == 0


EDM_GRIDS = {
    "edm_dhariwal.heun18": RhoGrid(18),
    "edm_dhariwal.heun10": RhoGrid(10),
    "edm_song_ddpmpp.heun8": RhoGrid(8, 0.01, 20.0, 5.0),
    "edm_vp_song_ddpmpp.heun6": RhoGrid(6),
}


@pytest.mark.parametrize("run", EDM_GRIDS)
def test_rho_grid_gives_the_levels_of_recorded_runs(run):
    recorded = load("edm_samplers")[1][f"out.{run}.net_sigmas"]  # every level but the first twice
    sigmas = torch.tensor(EDM_GRIDS[run].sigmas()[:-1], dtype=torch.float64)
    assert_close(sigmas, recorded[::2], rtol=1e-12, atol=0)
    assert_close(sigmas[1:], recorded[1::2], rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("name", "grid"),
    [
        ("karras10", RhoGrid(10)),
        ("karras7_rho3", RhoGrid(7, 0.03, 14.6, 3.0)),
        ("karras50", RhoGrid(50)),
        ("exponential8", ExponentialGrid(8, 0.03, 14.6)),
    ],
)
def test_a_grid_agrees_with_an_independent_one(name, grid):
    recorded = load("k_samplers")[1][f"out.sigmas.{name}"]
    # Theirs is computed in float32: a seventh power has seven times the rounding of its root.
    assert_close(torch.tensor(grid.sigmas()), recorded, rtol=2e-6, atol=1e-7)


def test_the_vp_grid_agrees_with_an_independent_one():
    """Theirs takes 1 from an exponential in float32; its rounding grows towards low levels."""
    recorded = load("k_samplers")[1]["out.sigmas.vp8"].double()[:-1]
    error = (torch.tensor(VPGrid(8).sigmas(), dtype=torch.float64)[:-1] - recorded).abs()
    rounding = torch.finfo(torch.float32).eps / (2 * recorded)
    assert (error < 1e-6 * recorded + rounding).all()


def test_the_exponential_grid_is_the_limit_of_rho_grids():
    limit = ExponentialGrid(9, 0.01, 50.0).sigmas()
    assert limit[0] == 50.0 and limit[-2:] == (0.01, 0.0)
    assert_close(RhoGrid(9, 0.01, 50.0, rho=1e7).sigmas(), limit, rtol=1e-5, atol=0)


@pytest.mark.parametrize("grid", [RhoGrid, ExponentialGrid])
@pytest.mark.parametrize(
    "bad",
    [
        {"steps": 1},
        {"sigma_min": 0.0},
        {"sigma_min": math.nan},
        {"sigma_max": 0.001},
        {"sigma_max": math.inf},
        {"sigma_max": math.nan},
    ],
)
def test_an_impossible_range_of_levels_is_refused(grid, bad):
    with pytest.raises(ValueError, match=f"{grid.__name__} needs .* 0 < sigma_min < sigma_max"):
        grid(**bad)


@pytest.mark.parametrize("rho", [0.0, -7.0, math.nan, math.inf])
def test_an_impossible_rho_is_refused(rho):
    with pytest.raises(ValueError, match="rho must be a positive number"):
        RhoGrid(rho=rho)


def test_scaled_linear_betas_have_equally_spaced_roots():
    betas = scaled_linear_levels(5, 0.01, 0.09).betas
    assert_close(torch.tensor(betas), torch.tensor([0.01, 0.0225, 0.04, 0.0625, 0.09]).double())
    alpha_bar = scaled_linear_levels().alpha_bars[-1]  # at the end of Stable Diffusion's chain
    assert alpha_bar == pytest.approx(0.0047, abs=5e-5)


def test_strided_entries_lead_or_trail():
    """Lin et al. (2024), table 2, for 10 of 1000 levels, counted from 0."""
    levels = scaled_linear_levels()
    leading, trailing = StridedGrid(levels, 10, 1, True), StridedGrid(levels, 10, 99)
    assert leading.indices() == [1, 101, 201, 301, 401, 501, 601, 701, 801, 901]
    assert trailing.indices() == [99, 199, 299, 399, 499, 599, 699, 799, 899, 999]
    assert leading.sigmas() == (*levels.sigmas[leading.indices()[::-1]], levels.sigmas[0])
    assert trailing.sigmas() == (*levels.sigmas[trailing.indices()[::-1]], 0.0)
    visited_already = StridedGrid(levels, 10, 0, True)
    assert visited_already.sigmas()[-2:] == (levels.sigmas[100], levels.sigmas[0])


@pytest.mark.parametrize(("steps", "offset"), [(0, 0), (1001, 0), (10, -1), (10, 1000), (1000, 1)])
def test_strides_beyond_the_chain_are_refused(steps, offset):
    with pytest.raises(ValueError, match=f"steps={steps} from offset={offset}"):
        StridedGrid(scaled_linear_levels(), steps, offset)


def test_each_family_starts_from_its_own_noise():
    noise = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    for grid in (RhoGrid(18), ExponentialGrid(18)):
        assert_close(grid.start(noise, 80.2), 80.2 * noise)
    for spacing, t in ((None, 999), ("250", 999), ("ddim25", 960)):
        grid = ChainGrid(linear_levels(), spacing)
        sigma = linear_levels().sigmas[t]
        assert grid.sigmas()[0] == sigma
        started = grid.start(noise, sigma)
        assert_close(started, math.sqrt(1 + sigma**2) * noise, rtol=1e-14, atol=0)
        assert_close(started / vp_scale(torch.tensor(sigma)), noise)  # x_T is unit noise


@pytest.mark.parametrize("case", range(7))
def test_perturbed_images_are_those_of_the_chain(case):
    """q_sample and the moments of q(x_t | x_0), recorded at t = 0, 1, the middle and the end."""
    description, tensors = load("gd_diffusion_steps")
    settings, c = description["cases"][case], f"c{case}."
    levels = SCHEDULES[settings["schedule"]]()
    indices = ChainGrid(levels, settings["respacing"] or None).indices()
    sigma = torch.tensor([levels.sigmas[indices[t]] for t in tensors[c + "in.t"]])
    x_0, noise = tensors[c + "in.x_start"].double(), tensors[c + "in.noise"].double()
    scale = expand(vp_scale(sigma), x_0)
    close = {"rtol": 1e-5, "atol": 1e-6}
    assert levels.t(sigma).tolist() == tensors[c + "out.timesteps_given_to_model"].tolist()
    assert_close(
        (perturb(x_0, sigma, noise) / scale).float(), tensors[c + "out.q_sample"], **close
    )
    assert_close((x_0 / scale).float(), tensors[c + "out.q_mean_variance.mean"], **close)
    variance = expand(sigma**2, x_0).expand(x_0.shape) / scale**2
    recorded = tensors[c + "out.q_mean_variance.variance"].expand(x_0.shape)
    assert_close(variance.float(), recorded, **close)


def test_uniform_t_gives_every_index_the_same_share():
    levels = cosine_levels(40)
    u = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    assert_close(
        UniformT(levels).quantile(u),
        torch.tensor(levels.sigmas).repeat_interleave(10),
        rtol=1e-12,
        atol=0,
    )
    generator = torch.Generator().manual_seed(0)
    t = levels.t(UniformT(levels).sample(8000, "cpu", generator)).long()
    excess = ((t.bincount(minlength=40) - 200.0) ** 2 / 200).sum().item()
    assert 15 < excess < 74  # chi-square with 39 degrees of freedom: 0.05% at either side


def test_log_normal_has_its_moments_and_quantiles():
    distribution = LogNormal(-1.2, 1.2)
    u = torch.special.ndtr(torch.tensor([-2.0, 0.0, 1.0], dtype=torch.float64))
    want = torch.tensor([-1.2 - 2.4, -1.2, 0.0], dtype=torch.float64).exp()
    assert_close(distribution.quantile(u), want)
    logs = distribution.sample(40_000, "cpu", torch.Generator().manual_seed(0)).log()
    assert logs.mean().item() == pytest.approx(-1.2, abs=4 * 1.2 / 200)
    assert logs.std().item() == pytest.approx(1.2, abs=4 * 1.2 / math.sqrt(80_000))


def test_clipped_log_normal_is_the_conditional_distribution():
    low, high = 0.1, 2.0
    clipped = Clipped(LogNormal(), low, high)
    u = torch.linspace(0.001, 0.999, 99, dtype=torch.float64)

    def below(sigma):
        return torch.special.ndtr((torch.as_tensor(sigma, dtype=torch.float64).log() + 1.2) / 1.2)

    share = (below(clipped.quantile(u)) - below(low)) / (below(high) - below(low))
    assert_close(share, u, rtol=0, atol=1e-9)
    sigma = clipped.sample(20_000, "cpu", torch.Generator().manual_seed(0))
    assert low * (1 - 1e-6) <= sigma.min()
    assert sigma.max() <= high * (1 + 1e-6)
    at_the_ends = (sigma < low * 1.001).float().mean() + (sigma > high * 0.999).float().mean()
    assert at_the_ends < 0.003  # a clamp would pile up 6% and 20% there


def test_clipped_uniform_t_keeps_the_levels_in_range_equally_likely():
    levels = linear_levels(100)
    low, high = levels.sigmas[30] * 0.999, levels.sigmas[69] * 1.001
    u = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    t = levels.t(Clipped(UniformT(levels), low, high).quantile(u))
    assert_close(t, torch.arange(30.0, 70.0).repeat_interleave(10), rtol=0, atol=0)


@pytest.mark.parametrize(("first", "last"), [(0, 0), (0, 99), (30, 69), (7, 7), (98, 99)])
def test_both_ends_of_the_range_are_included(first, last):
    levels = linear_levels(100)
    clipped = Clipped(UniformT(levels), *levels.sigmas[[first, last]].tolist())
    u = torch.tensor([2**-25, *torch.linspace(0.001, 0.999, 999), 1 - 2**-24])
    t = levels.t(clipped.quantile(u))
    assert_close(t.unique(), torch.arange(first, last + 1.0), rtol=0, atol=0)
    inside = Clipped(UniformT(levels), levels.sigmas[30] * (1 + 1e-9), levels.sigmas[69] * 0.999)
    assert levels.t(inside.quantile(u)).unique().tolist() == list(range(31, 69))


@pytest.mark.parametrize("distribution", [UniformT(linear_levels()), LogNormal()])
def test_the_last_drawable_number_is_still_a_level(distribution):
    """High noise alone: shares of the whole lie so near 1 that float32 would round them to 1."""
    clipped = Clipped(distribution, 20.0)
    sigma = clipped.quantile(torch.tensor([2**-25, 0.5, 1 - 2**-24]))
    assert sigma.isfinite().all()
    assert (sigma >= 20 * (1 - 1e-6)).all()
    assert sigma.diff().min() > 0


def test_a_range_without_noise_is_refused():
    with pytest.raises(ValueError, match="No noise level lies in"):
        Clipped(UniformT(linear_levels()), 1e5, 1e6)
    for low, high in ((1.0, 1.0), (2.0, 1.0), (math.nan, 1.0), (0.0, math.nan)):
        with pytest.raises(ValueError, match="No noise level lies in"):
            Clipped(LogNormal(), low, high)


@pytest.mark.parametrize(
    "bad",
    [{"std": 0.0}, {"std": math.nan}, {"std": math.inf}, {"mean": math.nan}, {"mean": math.inf}],
)
def test_an_impossible_log_normal_is_refused(bad):
    with pytest.raises(ValueError, match="finite mean and std > 0"):
        LogNormal(**bad)


def test_noise_is_drawn_from_the_generator_alone():
    state = torch.get_rng_state()
    draws = [LogNormal().sample(5, "cpu", torch.Generator().manual_seed(s)) for s in (3, 3, 4)]
    like = [noise_like(draws[0], torch.Generator().manual_seed(s)) for s in (3, 3, 4)]
    assert torch.equal(torch.get_rng_state(), state)
    for first, again, other in (draws, like):
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
    assert draws[0].dtype == torch.float32


def test_nearest_entries_are_nearest_in_sigma():
    """As the reference rounds; at the top of the cosine chain this differs from log sigma."""
    levels = cosine_levels()
    low, high = levels.sigmas[-2:].tolist()
    assert high / low > 30
    for part, t in ((0.49, 998), (0.51, 999)):
        sigma = low + part * (high - low)
        assert levels.snap(sigma) == levels.sigmas[t]
        assert levels.t(torch.tensor([sigma], dtype=torch.float64)).item() == t


def test_table_grid_takes_a_recorded_number_of_levels_end_to_end():
    levels = cosine_levels()
    allowed = [sigma for sigma in levels.sigmas.tolist() if 0.002 <= sigma <= 81]
    sigmas = TableGrid(levels, 256).sigmas()
    assert len(sigmas) == 257 and set(sigmas[:-1]) <= set(allowed) and sigmas[-1] == 0
    assert sigmas[0] == allowed[-1] and sigmas[-2] == allowed[0]
    stride = (len(allowed) - 1) / 255
    entries = [allowed[::-1].index(sigma) for sigma in sigmas[:-1]]
    assert entries == [round(stride * index) for index in range(256)]
    assert TableGrid(levels, len(allowed)).sigmas() == (*allowed[::-1], 0.0)
    with pytest.raises(ValueError, match=f"993 steps: the chain has {len(allowed)} levels"):
        TableGrid(levels, 993)
    with pytest.raises(ValueError, match="1 steps"):
        TableGrid(levels, 1)


def test_vp_grid_is_that_of_the_recorded_run():
    _, tensors = load("edm_ablation_samplers")
    want = tensors["out.edm_vp_song_ddpmpp.abl_euler_vp.net_sigmas"].tolist()
    assert VPGrid(6).sigmas() == pytest.approx([*want, 0.0], rel=1e-9)
    ends = VPGrid(6, 0.002, 80.0).sigmas()
    assert (ends[0], ends[-2]) == pytest.approx((80.0, 0.002))
    want = tensors["out.edm_ve_song_ncsnpp.abl_heun_ve.net_sigmas"].tolist()[::2]
    assert ExponentialGrid(6, 0.02, 100.0).sigmas()[:-1] == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize("time", [LinearTime(), RootTime(), VPTime(), vp_time(0.002, 80.0)])
def test_times_and_levels_are_inverse_to_one_another(time):
    assert time.t(0.0) == 0.0
    for sigma in (0.002, 0.3, 1.0, 80.0):
        t = time.t(sigma)
        assert time.sigma(t) == pytest.approx(sigma, rel=1e-9)
        slope = (time.sigma(t * (1 + 1e-6)) - time.sigma(t * (1 - 1e-6))) / (2e-6 * t)
        assert time.rate(t) == pytest.approx(slope, rel=1e-6)


def test_a_vp_time_goes_through_two_levels():
    assert vp_time(VPTime().sigma(1e-3), VPTime().sigma(1.0)).beta_min == pytest.approx(0.1)
    time = vp_time(0.01, 50.0, epsilon=0.01)
    assert (time.sigma(0.01), time.sigma(1.0)) == pytest.approx((0.01, 50.0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VPGrid(1), "at least 2 steps"),
        (lambda: VPGrid(5, 3.0, 2.0), "sigma_min < sigma_max"),
        (lambda: vp_time(0.1, 1.0, 1.0), "epsilon"),
        (lambda: vp_time(0.9, 1.0), "beta_d > 0"),
        (lambda: VPTime(0.0, 0.1), "beta_d > 0"),
        (lambda: VPTime(1.0, -0.5), "beta_min > -beta_d / 2"),
    ],
)
def test_impossible_times_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
