import math
import statistics
from itertools import pairwise

import pytest
import torch

from robustguide.metrics.distances import without_each
from robustguide.metrics.extrapolation import extrapolate
from robustguide.metrics.frechet import Moments, Target, frechet_distance
from robustguide.metrics.jackknife import Jackknife, groups_of
from robustguide.metrics.tables import Held


class Normal:
    """Images of a normal law whose distance from the real ones is known."""

    def __init__(self, dim, scale, shift):
        self.real = torch.linspace(0.5, 2, dim, dtype=torch.float64)
        self.std, self.shift = self.real * scale, shift
        self.reference = Moments(None, torch.zeros(dim).double(), self.real.square().diag())
        self.truth = dim * shift**2 + (self.std - self.real).square().sum().item()

    def rows(self, n, seed):
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(n, len(self.std), generator=generator)
        return Held(self.shift + self.std.float() * noise)


@pytest.fixture(scope="module")
def law():
    return Normal(24, 1.05, 0.05)


@pytest.fixture(scope="module")
def lines(law):
    """Of 40 repetitions."""
    found, groups, target = [], groups_of(torch.arange(600)), Target(law.reference)
    for seed in range(40):
        rows = law.rows(600, seed)
        jackknife = Jackknife(*without_each(rows, groups, target))
        found.append(extrapolate(rows, law.reference, jackknife))
    return found


def test_limits_hold_the_truth_which_the_distance_itself_misses(law, lines):
    gaps = [line.distances[0] - law.truth for line in lines]
    errors = [line.jackknife.standard_error() for line in lines]
    assert all(gap > 3 * error for gap, error in zip(gaps, errors, strict=True))
    covered = sum(low <= law.truth <= high for low, high in (line.interval() for line in lines))
    assert covered >= 36
    spread = statistics.stdev(line.value for line in lines)
    assert abs(statistics.fmean(line.value for line in lines) - law.truth) < 0.5 * spread
    assert 0.8 < statistics.fmean(line.standard_error for line in lines) / spread < 1.6


def test_a_distance_of_other_images_at_another_n_lies_in_the_predicted_limits(law, lines):
    inside, nearer = 0, 0
    for seed, line in enumerate(lines):
        expected, low, high = line.predict(4000)
        assert low < expected < high and expected == line.at(4000)
        other = frechet_distance(Moments.of(law.rows(4000, 1000 + seed)), law.reference)
        inside += low <= other <= high
        nearer += abs(other - expected) < abs(other - line.distances[0])
    assert inside >= 36 and nearer >= 36


def test_blocks_with_fewer_images_than_features_bend_the_line_and_widen_the_limits():
    law = Normal(64, 1.1, 0.0)
    for seed in range(5):
        line = extrapolate(law.rows(320, seed), law.reference)
        assert abs(line.value - law.truth) > 3 * line.jackknife.standard_error()
        assert abs(line.bend) > line.jackknife.standard_error()
        low, high = line.interval()
        assert low <= law.truth <= high
    straight = extrapolate(Normal(8, 1.1, 0.0).rows(2000, 0), Normal(8, 1.1, 0.0).reference)
    assert abs(straight.bend) < straight.jackknife.standard_error()


def test_points_are_mean_distances_of_disjoint_blocks_of_one_order():
    law = Normal(6, 1.1, 0.1)
    table = law.rows(103, 0)
    line = extrapolate(table, law.reference, sizes=3, seed=5)
    order = torch.randperm(103, generator=torch.Generator().manual_seed(5))
    for j, found in enumerate(line.distances, 1):
        cuts = [round(103 * i / j) for i in range(j + 1)]
        parts = [order[first:last] for first, last in pairwise(cuts)]
        each = [frechet_distance(Moments.of(table.features[p]), law.reference) for p in parts]
        assert found == pytest.approx(statistics.fmean(each), rel=1e-10)
    assert line.sizes == pytest.approx((103, 103 / 2, 103 / 3))


def test_the_line_goes_through_the_distance_and_tells_itself_in_plain_numbers():
    law = Normal(6, 1.1, 0.1)
    line = extrapolate(law.rows(200, 0), law.reference)
    assert len(line.sizes) == 10 and line.sizes[-1] == 20
    assert line.at(200) == line.distances[0] == pytest.approx(line.jackknife.value, rel=1e-12)
    gains = [d - line.distances[0] for d in line.distances[1:]]
    assert line.slope == pytest.approx(200 * sum(gains) / 45)
    assert line.value == pytest.approx(line.distances[0] - line.slope / 200)
    told = line.told()
    assert told["value"] == line.value and told["standard_error"] == pytest.approx(
        math.hypot(line.jackknife.standard_error(), line.slope_error / 200)
    )
    assert all(type(number) is float for number in told.values())
    assert extrapolate(law.rows(200, 0), law.reference).told() == told


def test_rounding_of_features_that_sum_to_zero_is_no_other_distance():
    gaps = []
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(4096, 16, generator=generator)
        made = torch.nn.functional.layer_norm(rows, [16])
        reference = Moments.of(Held(made[:2048]))
        line = extrapolate(Held(made), reference)
        gaps.append(abs(line.jackknife.value - line.distances[0]))
    assert 1e-8 < max(gaps) < 1e-6 * reference.covariance.trace()


def test_too_few_images_and_other_jackknives_are_refused():
    law = Normal(6, 1.1, 0.1)
    with pytest.raises(ValueError, match=r"99 images for 10 sizes.*100 for so many"):
        extrapolate(law.rows(99, 0), law.reference)
    with pytest.raises(ValueError, match="200 images for 2 sizes"):
        extrapolate(law.rows(200, 0), law.reference, sizes=2)
    with pytest.raises(ValueError, match=r"distance of 1\.0, these features are at"):
        extrapolate(law.rows(200, 0), law.reference, Jackknife(1.0, (1.0, 1.0)))
