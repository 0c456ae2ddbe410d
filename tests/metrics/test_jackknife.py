import math
import statistics

import pytest
import torch

from robustguide.metrics.distances import without_each
from robustguide.metrics.frechet import Moments, Target
from robustguide.metrics.jackknife import Jackknife, difference, groups_of
from robustguide.metrics.tables import Held

DIM, N = 12, 400


def test_of_a_mean_it_is_the_standard_error_of_the_mean():
    """Groups of one: leaving one out gives s / sqrt n exactly."""
    values = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    left = [values[torch.arange(50) != i].mean().item() for i in range(50)]
    found = Jackknife(values.mean().item(), tuple(left))
    assert found.standard_error() == pytest.approx(values.std().item() / math.sqrt(50))
    half = 2.009575234489209 * found.standard_error()  # Student's t, 49 degrees of freedom
    assert found.interval() == pytest.approx((found.value - half, found.value + half))
    assert found.interval(0.5)[1] - found.value == pytest.approx(0.679530 * half / 2.009575)


def test_groups_are_equal_and_those_of_the_seed_whatever_the_order():
    seeds = torch.arange(1000, 3003)
    groups = groups_of(seeds)
    sizes = groups.bincount(minlength=20)
    assert len(sizes) == 20 and sizes.max() - sizes.min() <= 1
    order = torch.randperm(len(seeds), generator=torch.Generator().manual_seed(0))
    assert torch.equal(groups_of(seeds[order]), groups[order])
    assert torch.equal(groups_of(seeds.repeat_interleave(2)), groups.repeat_interleave(2))


def test_groups_are_the_same_on_every_machine():
    """SplitMix64 of 0, 1, 2 as published: e220a8397b1dcdaf, then smaller ones first."""
    assert groups_of(torch.tensor([0, 1, 2, 3]), 4).tolist() == [3, 1, 2, 0]
    assert groups_of(torch.tensor([-1, 2**62, 7]), 3).sort().values.tolist() == [0, 1, 2]


def test_groups_do_not_depend_on_the_class():
    seeds = torch.arange(20_000)
    for classes in (10, 20):
        table = torch.stack(
            [groups_of(seeds)[seeds % classes == c].bincount(minlength=20) for c in range(classes)]
        )
        want = 1000 / classes
        chi_squared = ((table - want) ** 2 / want).sum().item()
        degrees = 19 * (classes - 1)
        assert abs(chi_squared - degrees) < 4 * math.sqrt(2 * degrees)


def test_few_seeds_are_groups_of_their_own():
    assert sorted(groups_of(torch.tensor([5, 900, 3])).tolist()) == [0, 1, 2]
    assert groups_of(torch.arange(9), 1).tolist() == [0] * 9
    with pytest.raises(ValueError, match="9 images to put into 0 groups"):
        groups_of(torch.arange(9), 0)
    with pytest.raises(ValueError, match="0 images"):
        groups_of(torch.arange(0))


def test_too_few_or_odd_replicates_are_refused():
    with pytest.raises(ValueError, match="1 replicates"):
        Jackknife(1.0, (1.0,))
    with pytest.raises(ValueError, match="2 replicates, of which 1 are finite"):
        Jackknife(1.0, (1.0, math.nan))
    with pytest.raises(ValueError, match="2 groups, the other 3"):
        difference(Jackknife(1.0, (1.0, 2.0)), Jackknife(1.0, (1.0, 2.0, 3.0)))


def test_a_common_part_cancels_in_a_paired_difference():
    noise = torch.randn(20, generator=torch.Generator().manual_seed(0)).tolist()
    own = torch.randn(20, generator=torch.Generator().manual_seed(1)).tolist()
    a = Jackknife(5.0, tuple(5 + x + 0.01 * y for x, y in zip(noise, own, strict=True)))
    b = Jackknife(3.0, tuple(3 + x for x in noise))
    found = difference(a, b)
    assert found.value == 2 and found.excludes() and not found.excludes(2.0)
    want = 0.01 * statistics.stdev(own) * math.sqrt(19**2 / 20)
    assert found.standard_error() == pytest.approx(want)
    assert found.standard_error() < 0.02 * a.standard_error()


@pytest.fixture(scope="module")
def target():
    """A normal law whose distance from others is known."""
    return Target(Moments(None, torch.zeros(DIM).double(), torch.eye(DIM).double()))


def measured(target, seed, scale, common=None):
    """Distance of N images of a normal law from the standard one, with replicates."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(N, DIM, generator=generator)
    rows = rows if common is None else 0.96 * common + 0.28 * rows
    return Jackknife(*without_each(Held(scale * rows), groups_of(torch.arange(N)), target))


def test_its_standard_error_is_the_standard_deviation_over_repetitions(target):
    far = [measured(target, seed, 1.5) for seed in range(40)]
    truth = statistics.stdev(each.value for each in far)
    assert statistics.fmean(e.standard_error() for e in far) == pytest.approx(truth, rel=0.25)
    expected = statistics.fmean(each.value for each in far)
    covered = sum(not each.excludes(expected) for each in far)
    assert covered >= 36
    # where the true distance is 0, all chance is quadratic: too careful, by up to sqrt 2
    near = [measured(target, seed, 1.0) for seed in range(40)]
    ratio = statistics.fmean(e.standard_error() for e in near) / statistics.stdev(
        e.value for e in near
    )
    assert 1 < ratio < math.sqrt(2) * 1.15


def test_paired_differences_hold_zero_when_there_is_none_and_exclude_it_when_there_is(target):
    """Pairs share most of their chance, as images of one seed by two methods do."""
    found = []
    for seed in range(40):
        common = torch.randn(N, DIM, generator=torch.Generator().manual_seed(10_000 + seed))
        first = measured(target, 2 * seed, 1.5, common)
        same = measured(target, 2 * seed + 1, 1.5, common)
        worse = measured(target, 2 * seed + 1, 1.53, common)
        found.append((difference(first, same), difference(worse, first), worse, first))
    assert 36 <= sum(not same.excludes() for same, *_ in found)
    assert sum(real.excludes() and real.value > 0 for _, real, *_ in found) >= 36
    # unpaired, the same shift drowns
    alone = [
        1.96 * math.hypot(a.standard_error(), b.standard_error()) < a.value - b.value
        for *_, a, b in found
    ]
    assert sum(alone) < 20
