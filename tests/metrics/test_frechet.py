import copy
import math
import pickle

import pytest
import torch
from golden_files import load
from torch.testing import assert_close
from torch_fidelity.metric_fid import fid_statistics_to_metric

from robustguide.metrics.frechet import (
    FeatureMoments,
    FrechetByNoise,
    Moments,
    Target,
    frechet_distance,
)
from robustguide.metrics.tables import Held

CASES = ("full_rank", "rank_deficient", "mixed_rank", "identical")


def features(n, dim=6, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator)
    return scale * torch.randn(n, dim, generator=generator) @ mixing


def distance(a, b):
    return frechet_distance(Moments.of(a), Moments.of(b))


def exact(mean, covariance, count=None):
    return Moments(count, mean.double(), covariance.double())


def turned(values, seed=0):
    """A covariance with these eigenvalues."""
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator).double())[0]
    covariance = (turn * values) @ turn.T
    return (covariance + covariance.T) / 2


def by_nuclear_norm(a, b):
    """The distance from the features themselves: singular values need no root of rounding."""
    a, b = a.double(), b.double()
    first, second = ((x - x.mean(0)) / math.sqrt(len(x) - 1) for x in (a, b))
    roots = torch.linalg.svdvals(first @ second.T).sum()
    means = (a.mean(0) - b.mean(0)).square().sum()
    return (means + first.square().sum() + second.square().sum() - 2 * roots).item()


@pytest.mark.parametrize("case", CASES)
def test_distance_and_moments_agree_with_the_golden_and_with_torch_fidelity(case):
    _, tensors = load("metrics")
    first, second = tensors[f"in.fid.{case}.features_1"], tensors[f"in.fid.{case}.features_2"]
    reference = FeatureMoments(second.shape[1])
    for batch in second.split(7):
        reference.update(batch)
    ours = Moments.of(first), reference.compute()
    for each, number, rows in zip(ours, (1, 2), (first, second), strict=True):
        assert_close(each.mean, tensors[f"out.fid.{case}.mu_{number}"], rtol=1e-9, atol=1e-9)
        want = tensors[f"out.fid.{case}.sigma_{number}"]
        assert_close(each.covariance, want, rtol=1e-9, atol=1e-9)
        assert each.count == len(rows)
    found = frechet_distance(*ours)
    want = tensors[f"out.fid.{case}.value"].item()
    assert found == pytest.approx(want, rel=1e-10, abs=1e-10)
    told = [{"mu": each.mean.numpy(), "sigma": each.covariance.numpy()} for each in ours]
    theirs = fid_statistics_to_metric(*told, False)["frechet_inception_distance"]
    assert found == pytest.approx(theirs, rel=1e-6, abs=1e-6)


def test_moving_all_features_by_d_costs_d_squared():
    rows, shift = features(50).double(), torch.tensor([3.0, 0, -4, 0, 0, 12])
    assert distance(rows, rows + shift) == pytest.approx(169, rel=1e-12)


def test_commuting_covariances_have_the_closed_form():
    a, b = torch.tensor([4.0, 9.0, 0.0, 1.0]), torch.tensor([1.0, 16.0, 25.0, 1.0])
    want = 1 + 1 + 25 + 0  # sum (sqrt a - sqrt b)^2
    zero = torch.zeros(4)
    diagonal = frechet_distance(exact(zero, a.diag()), exact(zero, b.diag()))
    assert diagonal == pytest.approx(want, rel=1e-12)
    pair = [exact(zero, turned(values.double())) for values in (a, b)]
    for first, second in (pair, pair[::-1]):  # the singular one on either side
        assert frechet_distance(first, second) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("power", [2.0, 4.0])
def test_small_eigenvalues_count_with_their_roots(power):
    """Eigenvalues of the product fall below its rounding; their roots still add up to a lot."""
    index = torch.arange(1, 301).double()
    a, b = index**-power, index ** (-0.9 * power)
    want = (a.sqrt() - b.sqrt()).square().sum().item()
    found = frechet_distance(*(exact(torch.zeros(300), turned(values)) for values in (a, b)))
    assert found == pytest.approx(want, abs=1e-10)


@pytest.mark.parametrize("sizes", [(9, 12), (12, 9), (40, 7), (7, 400), (300, 400), (31, 33)])
def test_distance_is_that_of_the_features_also_with_fewer_images_than_features(sizes):
    first, second = features(sizes[0], 32), features(sizes[1], 32, seed=1)
    assert distance(first, second) == pytest.approx(by_nuclear_norm(first, second), rel=1e-10)


def test_a_rotation_of_both_changes_nothing():
    first, second = features(20, 32).double(), features(400, 32, seed=1).double()
    turn = torch.linalg.qr(features(32, 32, seed=2).double())[0]
    want = distance(first, second)
    assert distance(first @ turn, second @ turn) == pytest.approx(want, rel=1e-10)


def test_a_set_is_at_distance_zero_of_itself_and_distance_is_symmetric():
    few, many = features(4), features(300, seed=1)
    assert distance(many, many) == pytest.approx(0, abs=1e-10)
    assert distance(few, few) == pytest.approx(0, abs=1e-10)
    assert distance(few, many) == pytest.approx(distance(many, few), rel=1e-10)
    assert distance(few, many) > 0.1


def test_dead_and_dependent_features_change_nothing():
    """Rank below both n and d, on either side; the rounding of such a rank is no distance."""
    first, second = features(200, 8).double(), features(300, 8, seed=1).double()
    want = distance(first, second)
    dead = [torch.cat([rows, torch.full((len(rows), 3), 0.3)], 1) for rows in (first, second)]
    assert distance(*dead) == pytest.approx(want, rel=1e-10)
    spread = torch.linalg.qr(features(12, 8, seed=3).double())[0]  # (12, 8), orthonormal columns
    assert distance(first @ spread.T, second @ spread.T) == pytest.approx(want, rel=1e-9)
    full = features(300, 12, seed=4).double()
    flat = first @ spread.T
    found = distance(flat, full), distance(full, flat)
    assert found == pytest.approx([by_nuclear_norm(flat, full)] * 2, rel=1e-9)


def test_counts_that_are_not_told_are_made_up_for():
    few, many = Moments.of(features(10, 32)), Moments.of(features(400, 32, seed=1))
    want = frechet_distance(few, many)
    silent = [Moments(None, each.mean, each.covariance) for each in (few, many)]
    assert frechet_distance(*silent) == pytest.approx(want, rel=1e-9)
    assert frechet_distance(*silent[::-1]) == pytest.approx(want, rel=1e-9)


def test_a_large_common_offset_does_not_drown_the_covariance():
    """Sums of squares near 1e7 a row: float32 would keep nothing of a covariance near 1."""
    first, second = features(500).double(), features(400, seed=1).double()
    want = distance(first, second)
    assert distance(first + 3000, second + 3000) == pytest.approx(want, rel=1e-10)
    sums = FeatureMoments(6)
    sums.update(first + 3000)
    found = frechet_distance(sums.compute(), Moments.of(second + 3000))
    assert found == pytest.approx(want, rel=1e-6)


def test_a_target_gives_the_same_for_each_of_many_sets():
    reference = Moments.of(features(60, 8, seed=1))
    target = Target(reference)
    for seed in range(2, 5):
        moments = Moments.of(features(40, 8, seed=seed))
        assert target.distance(moments) == frechet_distance(moments, reference)


def test_features_that_are_not_finite_are_counted():
    diverged = features(20)
    diverged[3, 2], diverged[0, 0], diverged[3, 1] = math.inf, math.nan, math.nan
    with pytest.raises(ValueError, match="2 of 20 rows of features are not finite"):
        Moments.of(diverged)
    sums = FeatureMoments(6)
    sums.update(diverged)
    with pytest.raises(ValueError, match="2 of 20 rows of features are not finite"):
        sums.compute()
    broken = exact(torch.zeros(6), torch.full((6, 6), math.nan))
    with pytest.raises(ValueError, match="reference are not finite"):
        frechet_distance(Moments.of(features(20)), broken)


def test_too_few_images_or_another_dimension_are_refused():
    one, many = Moments.of(features(1)), Moments.of(features(20))
    assert one.mean.tolist() == pytest.approx(features(1)[0].tolist())
    with pytest.raises(ValueError, match="needs two images; the samples had 1"):
        frechet_distance(one, many)
    with pytest.raises(ValueError, match="the reference had 0"):
        frechet_distance(many, Moments.of(Held(features(0))))
    with pytest.raises(ValueError, match=r"samples have 6 features, the reference 4"):
        frechet_distance(many, Moments.of(features(20, dim=4)))


def test_constant_images_have_the_distance_of_their_means():
    same = torch.ones(5, 3)
    assert distance(same, 3 * same) == pytest.approx(12)
    spread = features(50, 3)
    want = (spread.double().mean(0) - 1).square().sum() + spread.double().var(0).sum()
    assert distance(same, spread) == pytest.approx(want.item())
    assert distance(spread, same) == pytest.approx(want.item())


def test_beside_a_device_without_float64_the_cpu_computes():
    moments = Moments.of(features(20)).to(torch.device("mps"))
    assert moments.mean.device.type == "cpu" and moments.covariance.dtype == torch.float64
    assert Target(moments, torch.device("mps")).distance(moments) == pytest.approx(0, abs=1e-10)


def test_two_streams_merged_and_any_order_equal_the_whole():
    rows = features(90)
    whole, first, second = (FeatureMoments(6) for _ in range(3))
    whole.update(rows)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(3))
    first.update(rows[order[:20]])
    first.update(rows[order[20:21]])
    for batch in rows[order[21:]].split(16):
        second.update(batch)
    first.merge_state(second)
    assert_close(first.compute().covariance, whole.compute().covariance, rtol=1e-12, atol=1e-12)
    assert first.compute().count == 90


def test_noise_levels_are_independent_and_those_without_a_distance_are_nan():
    reference = Moments.of(features(60, seed=1))
    metric = FrechetByNoise(reference, levels=4)
    rows = [features(40, scale=2.0), features(30, scale=0.5)]
    for level in (0, 1):
        for batch in rows[level].split(8):
            metric.update(batch, level)
    metric.update(torch.full((5, 6), math.nan), 3)
    results = metric.compute()
    for level in (0, 1):
        want = frechet_distance(Moments.of(rows[level]), reference)
        assert results[level].distance == pytest.approx(want, rel=1e-10)
    assert [result.n for result in results] == [40, 30, 0, 5]
    assert math.isnan(results[2].distance) and math.isnan(results[3].distance)


def test_a_single_level_and_a_single_feature_keep_their_shapes():
    reference = FeatureMoments(1)
    reference.update(torch.tensor([[1.0], [3.0]]))
    moments = reference.compute()
    assert moments.mean.tolist() == [2] and moments.covariance.tolist() == [[2]]
    metric = FrechetByNoise(moments, levels=1)
    metric.update(torch.tensor([[1.0], [3.0]]))
    (result,) = metric.compute()
    assert result.distance == pytest.approx(0, abs=1e-12)


def test_reference_is_no_state_and_survives_copies_and_moves():
    metric = FrechetByNoise(Moments.of(features(60, seed=1)), levels=1)
    metric.update(features(30))
    want = metric.compute()
    assert metric.state_dict() == {} and not list(metric.buffers())
    assert set(metric.metric_state) == {"count", "odd", "total", "outer"}
    for twin in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
        assert twin.compute() == want
    metric.half()
    assert metric.outer.dtype == torch.float64
    assert metric.to("meta").outer.device.type == "meta"


def test_low_precision_features_are_summed_in_float64():
    low = features(30).bfloat16()
    first, second = FeatureMoments(6), FeatureMoments(6)
    first.update(low)
    second.update(low.double())
    assert torch.equal(first.compute().covariance, second.compute().covariance)
    assert_close(Moments.of(low).covariance, Moments.of(low.double()).covariance, rtol=0, atol=0)


def test_update_refuses_other_shapes_and_levels():
    metric = FrechetByNoise(Moments.of(features(20)), levels=2)
    with pytest.raises(ValueError, match=r"\(5, 4\), expected \(b, 6\)"):
        metric.update(features(5, dim=4))
    for level in (-1, 2):
        with pytest.raises(
            ValueError, match=f"noise level {level}, expected an index from 0 to 1"
        ):
            metric.update(features(5), level)
