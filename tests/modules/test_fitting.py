"""Planted faults of a calibrated classifier come back; hopeless data end somewhere finite."""

import math
from functools import cache

import pytest
import torch
from oracles import plane

from robustguide.classifiers import (
    BandTemperature,
    Scaling,
    SmoothTemperature,
    Temperature,
    VectorScaling,
)
from robustguide.metrics import Answers
from robustguide.modules.fitting import LARGEST, complaints, fit
from robustguide.modules.kept import Kept, joined

LEVELS = (0.3, 0.5, 1.0, 2.0, 4.0)
COUNT = 40_000  # a temperature of one level then has a standard error below a percent


@cache
def calibrated():
    """log p(x, y) of a mixture at samples of itself."""
    mixture, generator = plane(), torch.Generator().manual_seed(0)
    x_0, y = mixture.sample(COUNT, generator)
    noise = torch.randn(x_0.shape, generator=generator, dtype=torch.float64)
    sigmas = [torch.full((COUNT,), level) for level in LEVELS]
    logits = [
        mixture.log_joint(x_0 + level * noise, sigma)
        for level, sigma in zip(LEVELS, sigmas, strict=True)
    ]
    return torch.stack(logits).float(), y


def kept(logits, y, draw=0):
    index = torch.arange(len(y))
    return Kept(logits.float(), y, index, torch.full_like(index, draw))


def overconfident(factor):
    """Logits times a factor of the noise level."""
    logits, y = calibrated()
    factors = torch.tensor([factor(level) for level in LEVELS])
    return kept(logits * factors[:, None, None], y)


def temperatures(scaling, levels=LEVELS):
    return scaling.temperature(torch.tensor(levels)).tolist()


def assert_calibrated(scaling, data):
    """The error that is left is that of a calibrated classifier of as many rows."""
    scaled = [
        scaling(logits, torch.full((len(logits),), level))
        for logits, level in zip(data.logits, LEVELS, strict=True)
    ]
    answers = Answers.of(torch.stack(scaled), data.y)
    error = answers.sampling_error(draws=60)
    assert (answers.ece <= error[1]).all()
    assert answers.integral_ece <= error[3]
    before = Answers.of(data.logits, data.y)
    assert (before.ece > 3 * error[1]).any()  # the test could fail


@torch.no_grad()
def test_one_temperature():
    data, scaling = overconfident(lambda sigma: 2.5), Temperature()
    done = fit(scaling, data, LEVELS)
    assert temperatures(scaling)[0] == pytest.approx(2.5, rel=0.02)
    assert done.converged and done.endless == () and complaints(done, scaling) == []
    assert done.loss < done.loss_before
    assert_calibrated(scaling, data)


@torch.no_grad()
def test_a_temperature_for_each_band():
    """Levels that are edges belong to the lower band, in the fit as in use."""
    planted = {0.3: 3.0, 0.5: 3.0, 1.0: 0.5, 2.0: 1.0, 4.0: 1.7}
    data, scaling = overconfident(planted.get), BandTemperature([0.5, 1.0, 2.0])
    done = fit(scaling, data, LEVELS)
    assert temperatures(scaling) == pytest.approx(list(planted.values()), rel=0.02)
    assert done.converged and done.gradient < 1e-8 and 1 < done.iterations < 30
    assert_calibrated(scaling, data)


@torch.no_grad()
def test_a_smooth_temperature():
    """log k is a parabola of log sigma; the spline with a knot at each level meets it there."""

    def k(sigma):
        return math.exp(0.8 - 0.3 * math.log(sigma) ** 2)

    data, scaling = overconfident(k), SmoothTemperature(list(LEVELS))
    assert fit(scaling, data, LEVELS).converged
    assert temperatures(scaling) == pytest.approx([k(sigma) for sigma in LEVELS], rel=0.02)
    between = [0.4, 0.7, 1.4, 3.0]
    expected = [k(sigma) for sigma in between]
    assert temperatures(scaling, between) == pytest.approx(expected, rel=0.05)
    assert_calibrated(scaling, data)


@torch.no_grad()
def test_fewer_knots_than_levels():
    """A straight line of log T is a natural spline with any knots."""
    data = overconfident(lambda sigma: 2 * sigma**0.4)
    scaling = SmoothTemperature([0.3, 1.0, 4.0])
    fit(scaling, data, LEVELS)
    expected = [2 * sigma**0.4 for sigma in LEVELS]
    assert temperatures(scaling) == pytest.approx(expected, rel=0.02)


@torch.no_grad()
def test_factors_and_shifts_of_classes():
    """z = (z* - b) / a is mended by a z + b, and shifts count up to a constant."""
    factors, shifts = torch.tensor([0.5, 1.5, 0.8]), torch.tensor([0.7, -0.4, -0.3])
    logits, y = calibrated()
    logits = logits - logits.mean(-1, keepdim=True)
    data, scaling = kept((logits - shifts) / factors, y), VectorScaling(3)
    assert fit(scaling, data, LEVELS).converged
    torch.testing.assert_close(scaling.factors, factors, rtol=0.02, atol=0)
    found = scaling.shifts - scaling.shifts.mean()
    torch.testing.assert_close(found, shifts, rtol=0, atol=0.02)
    assert_calibrated(scaling, data)


@torch.no_grad()
def test_adam_ends_where_lbfgs_does():
    logits, y = calibrated()
    data = kept(3 * logits[:2, :200], y[:200])
    one, other = BandTemperature([0.4]), BandTemperature([0.4])
    fit(one, data, LEVELS[:2])
    assert fit(other, data, LEVELS[:2], "adam", max_iterations=250).converged
    torch.testing.assert_close(other.logs, one.logs, rtol=0, atol=1e-4)


@torch.no_grad()
def test_the_loss_is_the_mean_over_levels_and_rows():
    data = overconfident(lambda sigma: 1.0)
    done = fit(Temperature(), data, LEVELS)
    expected = Answers.of(data.logits, data.y).mean_nll.mean()
    assert done.loss_before == pytest.approx(float(expected), rel=1e-9)


def parameters_of(data, scaling, levels):
    fit(scaling, data, levels)
    return torch.cat([p.detach().flatten() for p in scaling.parameters()])


@pytest.mark.parametrize("make", [Temperature, lambda: VectorScaling(3)])
def test_the_order_of_rows_changes_no_number(make):
    logits, y = (calibrated()[0][:2, :999] * 3, calibrated()[1][:999])
    index, draw = torch.arange(999) // 3, torch.arange(999) % 3
    whole = Kept(logits, y, index, draw)
    order = torch.randperm(999, generator=torch.Generator().manual_seed(1))
    parts = [Kept(logits[:, rows], y[rows], index[rows], draw[rows]) for rows in order.split(100)]
    for name, tensor in vars(joined(parts)).items():
        assert torch.equal(tensor, getattr(whole, name))
    one, other = (parameters_of(data, make(), LEVELS[:2]) for data in (whole, joined(parts)))
    assert torch.equal(one, other)


@pytest.mark.parametrize(("classes", "n"), [(2, 1), (2, 50), (1000, 40)])
def test_other_sizes(classes, n):
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(1, n, classes, generator=generator)
    y = torch.randint(classes, (n,), generator=generator)
    scaling = Temperature()
    done = fit(scaling, kept(logits, y), [1.0])
    assert done.loss <= done.loss_before
    assert 1 / LARGEST <= scaling.logs.exp().item() * 1.01 and scaling.logs.exp() < 1.01 * LARGEST


def perfect(n=200, classes=3):
    """Every row is right, by a wide margin."""
    y = torch.arange(n) % classes
    return torch.nn.functional.one_hot(y, classes).float()[None] * 2, y


def test_a_band_in_which_all_is_right_is_told_and_leaves_the_others_alone():
    logits, y = perfect(3000)
    mixed, known = calibrated()
    mixed, known = mixed[2:3, :3000] * 2, known[:3000]
    order = known.argsort(), y.argsort()  # the same labels at both levels, as of one image
    rows = min(int((known == k).sum()) for k in range(3))
    pick = [
        torch.cat([o[l[o] == k][:rows] for k in range(3)])
        for o, l in zip(order, (known, y), strict=True)
    ]
    both = torch.cat([mixed[:, pick[0]], logits[:, pick[1]]])
    data = kept(both, known[pick[0]])
    alone = Temperature()
    fit(alone, kept(both[:1], known[pick[0]]), [1.0])
    scaling = BandTemperature([0.5])
    done = fit(scaling, data, [1.0, 0.1])
    assert done.endless == (0,)
    assert 1 / LARGEST <= scaling.logs.exp()[0].item() < 0.3
    assert scaling.logs[1].item() == pytest.approx(alone.logs.item(), abs=1e-4)
    (complaint,) = complaints(done, scaling)
    assert "do not bound temperatures [0]" in complaint and "BandTemperature" in complaint


def test_wrong_answers_alone_end_at_the_bound():
    """The flatter the better: without the bound the temperature would go on for ever."""
    logits, y = perfect()
    scaling = Temperature()
    done = fit(scaling, kept(-1000 * logits, y), [1.0])
    assert scaling.logs.exp().item() == pytest.approx(LARGEST, rel=0.01)
    assert done.endless == (0,)


@pytest.mark.parametrize("make", [Temperature, lambda: SmoothTemperature([0.5, 2.0])])
def test_constant_logits_leave_the_temperature(make):
    scaling = make()
    done = fit(scaling, kept(torch.zeros(2, 50, 4), torch.arange(50) % 4), [0.5, 2.0])
    assert done.converged and done.endless == tuple(range(len(scaling.logs)))
    assert torch.equal(scaling.logs, torch.zeros_like(scaling.logs))
    assert done.loss == pytest.approx(math.log(4))


def test_factors_of_separable_data_stay_finite():
    logits, y = perfect()
    scaling = VectorScaling(3)
    done = fit(scaling, kept(logits, y), [1.0])
    assert done.loss < 1e-3
    assert all(p.isfinite().all() and (p.abs() <= LARGEST + 1).all() for p in scaling.parameters())


def test_too_few_iterations_are_told():
    scaling = Temperature(10.0)
    done = fit(scaling, overconfident(lambda sigma: 0.2), LEVELS, max_iterations=1)
    assert not done.converged
    (complaint,) = complaints(done, scaling)
    assert "stopped after 1 iterations with a gradient of" in complaint
    assert "raise model.max_iterations" in complaint


def test_a_scaling_of_your_own():
    """Only what asks for a gradient is fitted."""

    class Shifted(Scaling):
        def __init__(self):
            super().__init__()
            self.factor = torch.nn.Parameter(torch.tensor(1.0))
            self.fixed = torch.nn.Parameter(torch.tensor(3.0), requires_grad=False)

        def forward(self, logits, sigma):
            return logits * self.factor + self.fixed

    scaling = Shifted()
    fit(scaling, overconfident(lambda sigma: 2.0), LEVELS)
    assert scaling.factor.item() == pytest.approx(0.5, rel=0.02) and scaling.fixed == 3
    with pytest.raises(ValueError, match="Shifted has no parameter to fit"):
        fit(scaling.requires_grad_(False), overconfident(lambda sigma: 2.0), LEVELS)
