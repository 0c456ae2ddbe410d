import copy
import math
import pickle

import pytest
import torch
from golden_files import load
from torch.testing import assert_close

from robustguide.metrics import (
    FeatureMoments,
    FrechetByNoise,
    FrechetDistance,
    Moments,
    frechet_distance,
)

CASES = ("full_rank", "rank_deficient", "mixed_rank", "identical")


def features(n, dim=6, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator)
    return scale * torch.randn(n, dim, generator=generator) @ mixing


def distance(a, b):
    return frechet_distance(Moments.of(a, "net"), Moments.of(b, "net")).distance


def exact(mean, covariance):
    return Moments(1000, mean.double(), covariance.double(), "net")


@pytest.mark.parametrize("case", CASES)
def test_distance_and_moments_agree_with_the_golden(case):
    _, tensors = load("metrics")
    first, second = tensors[f"in.fid.{case}.features_1"], tensors[f"in.fid.{case}.features_2"]
    reference = FeatureMoments(second.shape[1], "net")
    for batch in second.split(7):
        reference.update(batch)
    moments = reference.compute()
    assert_close(moments.mean, tensors[f"out.fid.{case}.mu_2"], rtol=1e-9, atol=1e-9)
    assert_close(moments.covariance, tensors[f"out.fid.{case}.sigma_2"], rtol=1e-9, atol=1e-9)
    metric = FrechetDistance(moments, "net")
    for batch in first.split(11):
        metric.update(batch)
    result = metric.compute()
    want = tensors[f"out.fid.{case}.value"].item()
    assert math.isclose(result.distance, want, rel_tol=1e-5, abs_tol=1e-6)
    assert (result.n, result.reference_n) == (len(first), len(second))
    few = min(len(first), len(second)) <= first.shape[1]
    assert result.rank_deficient is few is ("rank" in case and case != "full_rank")


def test_moving_all_features_by_d_costs_d_squared():
    rows, shift = features(50), torch.tensor([3.0, 0, -4, 0, 0, 12])
    assert math.isclose(distance(rows, rows + shift), 169, rel_tol=1e-6)


def test_commuting_covariances_have_the_closed_form():
    a, b = torch.tensor([4.0, 9.0, 0.0, 1.0]), torch.tensor([1.0, 16.0, 25.0, 1.0])
    want = 1 + 1 + 25 + 0  # sum (sqrt a - sqrt b)^2
    zero = torch.zeros(4)
    diagonal = frechet_distance(exact(zero, a.diag()), exact(zero, b.diag()))
    assert math.isclose(diagonal.distance, want, rel_tol=1e-12)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).double())[
        0
    ]
    turned = [exact(zero, turn @ c.double().diag() @ turn.T) for c in (a, b)]
    # the zero eigenvalue comes back as 1e-16, so its root as 1e-8
    assert math.isclose(frechet_distance(*turned).distance, want, rel_tol=1e-6)


def test_a_set_is_at_distance_zero_of_itself_and_distance_is_symmetric():
    few, many = features(4), features(300, seed=1)
    assert distance(many, many) == pytest.approx(0, abs=1e-6)
    assert distance(few, few) == pytest.approx(0, abs=1e-6)
    assert distance(few, many) == pytest.approx(distance(many, few), rel=1e-6)
    assert distance(few, many) > 0.1


def test_a_large_common_offset_does_not_drown_the_covariance():
    """Sums of squares near 1e7 a row: float32 would keep nothing of a covariance near 1."""
    first, second = features(500).double(), features(400, seed=1).double()
    reference = FeatureMoments(6, "net")
    reference.update(second + 3000)
    metric = FrechetDistance(reference.compute(), "net")
    metric.update(first + 3000)
    assert metric.compute().distance == pytest.approx(distance(first, second), rel=1e-6)


def test_two_halves_merged_and_any_order_equal_the_whole():
    rows, reference = features(90), Moments.of(features(60, seed=1), "net")
    whole, first, second = (FrechetDistance(reference, "net") for _ in range(3))
    whole.update(rows)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(3))
    first.update(rows[order[:20]])
    first.update(rows[order[20:21]])
    for batch in rows[order[21:]].split(16):
        second.update(batch)
    first.merge_state(second)
    assert first.compute().distance == pytest.approx(whole.compute().distance, rel=1e-10)
    assert first.compute().n == 90


def test_noise_levels_are_independent_and_empty_ones_are_nan():
    reference = Moments.of(features(60, seed=1), "net")
    metric = FrechetByNoise(reference, "net", levels=3)
    rows = [features(40, scale=2.0), features(30, scale=0.5)]
    for level in (0, 1):
        for batch in rows[level].split(8):
            metric.update(batch, level)
    results = metric.compute()
    for level in (0, 1):
        alone = FrechetDistance(reference, "net")
        alone.update(rows[level])
        assert results[level].distance == pytest.approx(alone.compute().distance, rel=1e-10)
    assert [result.n for result in results] == [40, 30, 0]
    assert math.isnan(results[2].distance) and results[2].rank_deficient


def test_a_single_level_and_a_single_feature_keep_their_shapes():
    reference = FeatureMoments(1, "net")
    reference.update(torch.tensor([[1.0], [3.0]]))
    moments = reference.compute()
    assert moments.mean.tolist() == [2] and moments.covariance.tolist() == [[2]]
    metric = FrechetByNoise(moments, "net", levels=1)
    metric.update(torch.tensor([[1.0], [3.0]]))
    (result,) = metric.compute()
    assert result.distance == pytest.approx(0, abs=1e-12)


def test_fewer_than_two_images_or_features_that_are_not_finite_give_nan():
    reference = Moments.of(features(60), "net")
    one = FrechetDistance(reference, "net")
    one.update(features(1))
    assert math.isnan(one.compute().distance)
    diverged = features(20)
    diverged[3, 2] = math.inf
    assert math.isnan(distance(diverged, features(20)))


def test_reference_is_no_state_and_survives_copies_and_moves():
    metric = FrechetDistance(Moments.of(features(60, seed=1), "net"), "net")
    metric.update(features(30))
    want = metric.compute()
    assert metric.state_dict() == {} and not list(metric.buffers())
    assert set(metric.metric_state) == {"count", "total", "outer"}
    for twin in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
        assert twin.compute() == want
    metric.half()
    assert metric.outer.dtype == torch.float64
    assert metric.to("meta").outer.device.type == "meta"


def test_low_precision_features_are_summed_in_float64():
    low, reference = features(30).bfloat16(), Moments.of(features(60, seed=1), "net")
    metric, same = FrechetDistance(reference, "net"), FrechetDistance(reference, "net")
    metric.update(low)
    same.update(low.double())
    assert metric.compute() == same.compute()


def test_moments_of_different_extractors_are_not_compared():
    ours, theirs = Moments.of(features(20), "digits@1"), Moments.of(features(20), "inception@2")
    with pytest.raises(ValueError, match=r"'digits@1'.*'inception@2'"):
        frechet_distance(ours, theirs)
    with pytest.raises(ValueError, match=r"'digits@1'.*'inception@2'"):
        FrechetDistance(theirs, "digits@1")
    with pytest.raises(ValueError, match=r"'digits@1'.*'inception@2'"):
        FrechetByNoise(theirs, "digits@1", levels=3)
    with pytest.raises(ValueError, match=r"6 values.*4"):
        frechet_distance(ours, Moments.of(features(20, dim=4), "digits@1"))


def test_update_refuses_other_shapes_and_levels():
    metric = FrechetByNoise(Moments.of(features(20), "net"), "net", levels=2)
    with pytest.raises(ValueError, match=r"\(5, 4\), expected \(b, 6\) from 'net'"):
        metric.update(features(5, dim=4))
    for level in (-1, 2):
        with pytest.raises(
            ValueError, match=f"noise level {level}, expected an index from 0 to 1"
        ):
            metric.update(features(5), level)


def test_moments_written_and_read_are_the_same(tmp_path):
    moments = Moments.of(features(20), "digits@1", "digits, test split")
    moments.save(tmp_path / "reference.safetensors")
    read = Moments.load(tmp_path / "reference.safetensors")
    assert torch.equal(read.mean, moments.mean)
    assert torch.equal(read.covariance, moments.covariance)
    assert (read.count, read.extractor, read.images) == (20, "digits@1", "digits, test split")
    assert [path.name for path in tmp_path.iterdir()] == ["reference.safetensors"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "reference.safetensors"
    Moments.of(features(20), "old").save(path)

    def full_disk(tensors, part, metadata):
        part.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("robustguide.metrics.frechet.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        Moments.of(features(20), "new").save(path)
    assert Moments.load(path).extractor == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["reference.safetensors"]


def test_other_files_are_refused(tmp_path):
    from safetensors.torch import save_file

    weights, text = tmp_path / "weights.safetensors", tmp_path / "notes.txt"
    save_file({"weight": torch.zeros(2)}, weights)
    text.write_text("no tensors here")
    for path in (weights, text):
        with pytest.raises(ValueError, match=rf"{path.name}.*expected the moments"):
            Moments.load(path)
