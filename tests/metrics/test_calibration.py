import copy
import math
import pickle

import pytest
import torch
from golden_files import load
from torch.testing import assert_close
from torchmetrics.classification import MulticlassCalibrationError

from robustguide.metrics import (
    CalibrationByNoise,
    Reliability,
    band_of,
    level_of,
    tally,
    wilson_limits,
)

EXACT = {"rtol": 0, "atol": 1e-12}


@pytest.fixture(scope="module")
def golden():
    return load("metrics")


def measured(logits, y, band=0, bands=1, num_bins=15):
    metric = CalibrationByNoise(bands, num_bins)
    metric.update(logits, y, band)
    return metric.compute()


def random_rows(n, seed=0, classes=6):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, classes, generator=generator)
    return logits, torch.randint(classes, (n,), generator=generator)


def test_ece_and_its_table_agree_with_the_golden(golden):
    description, tensors = golden
    for bins in (10, 15):
        result = measured(tensors["in.ece.logits"], tensors["in.ece.labels"], num_bins=bins)
        want = description["ece"][f"bins{bins}"]["float64"]
        assert_close(result.ece[0].item(), want, rtol=0, atol=1e-6)
        count, accuracy, confidence = tensors[f"out.ece.bins{bins}.count_acc_conf"].T
        full = count > 0
        assert full.any()
        assert_close(result.bin_count[0], count, **EXACT)
        assert_close(result.bin_accuracy[0][full], accuracy[full], **EXACT)
        assert_close(result.bin_confidence[0][full], confidence[full], rtol=0, atol=1e-6)
        assert result.bin_accuracy[0][~full].isnan().all()


def test_bins_are_right_closed(golden):
    description, tensors = golden
    confidence, label = tensors["in.ece_edges.probs"].max(-1)
    correct = label == tensors["in.ece_edges.labels"]
    band = torch.zeros(len(label), dtype=torch.long)
    for bins in (4, 8):
        result = Reliability(tally(confidence, correct, band, bands=1, num_bins=bins))
        want = description["ece"]["edges"][f"bins{bins}"]["right_closed"]
        assert_close(result.ece[0].item(), want, rtol=0, atol=1e-6)


def test_curve_over_noise_levels_and_its_mean_agree_with_the_golden(golden):
    description, tensors = golden
    logits, labels = tensors["in.ece_curve.logits"], tensors["in.ece_curve.labels"]
    for bins in (10, 15):
        metric = CalibrationByNoise(len(logits), bins)
        for level, (rows, y) in enumerate(zip(logits, labels, strict=True)):
            metric.update(rows, y, level)
        result = metric.compute()
        close = {"rtol": 0, "atol": 1e-6}
        assert_close(result.ece, tensors[f"out.ece_curve.bins{bins}"], **close)
        assert_close(result.accuracy, tensors["out.ece_curve.accuracy"], **close)
        assert_close(result.confidence, tensors["out.ece_curve.mean_confidence"], **close)
        want = description["ece_curve"][f"bins{bins}"]["mean_over_timesteps"]
        assert_close(result.integral_ece.item(), want, **close)


def test_confidence_of_exactly_one_has_no_bin_of_its_own():
    """Both rows share the last bin; torchmetrics 1.9 puts the second into a sixteenth."""
    probabilities, y = torch.tensor([[0.95, 0.05], [1.0, 0.0]]), torch.tensor([0, 1])
    result = measured(probabilities.log(), y)
    assert_close(result.ece[0].item(), 0.475, rtol=0, atol=1e-7)
    theirs = MulticlassCalibrationError(num_classes=2, n_bins=15, norm="l1")
    assert_close(theirs(probabilities, y).item(), 0.525, rtol=0, atol=1e-6)


def test_one_band_equals_torchmetrics_where_no_confidence_is_on_an_edge():
    logits, y = random_rows(1000)
    theirs = MulticlassCalibrationError(num_classes=6, n_bins=15, norm="l1")
    assert_close(measured(logits, y).ece[0].item(), theirs(logits, y).item(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("accuracy", [0.0, 0.25, 1.0])
def test_full_confidence_with_accuracy_a_is_off_by_one_minus_a(accuracy):
    y = torch.zeros(40, dtype=torch.long)
    y[: round(40 * (1 - accuracy))] = 1
    logits = torch.tensor([800.0, -800.0]).expand(40, 2)
    result = measured(logits, y)
    assert_close(result.ece[0].item(), 1 - accuracy, **EXACT)
    assert_close(result.accuracy[0].item(), accuracy, **EXACT)
    assert result.confidence.item() == 1


def test_calibrated_rows_have_no_error_beyond_sampling_and_overconfident_ones_do():
    logits, _ = random_rows(100_000, classes=4)
    generator = torch.Generator().manual_seed(1)
    y = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
    # an empty bin's error is about sqrt(p q / n): over 15 bins at most 0.5 sqrt(15 / n) = 0.006
    assert measured(logits, y).ece.item() < 0.006
    assert measured(3 * logits, y).ece.item() > 0.1


def test_a_single_bin_is_the_gap_between_accuracy_and_confidence():
    logits, y = random_rows(300)
    result = measured(logits, y, num_bins=1)
    assert_close(result.ece, (result.accuracy - result.confidence).abs(), **EXACT)


def test_bands_are_independent_and_empty_ones_are_nan():
    logits, y = random_rows(300)
    band = torch.arange(300) % 3
    result = measured(logits, y, band, bands=4)
    for index in range(3):
        alone = measured(logits[band == index], y[band == index])
        for name in ("ece", "accuracy", "confidence", "count"):
            assert_close(getattr(result, name)[index], getattr(alone, name)[0], **EXACT)
    assert result.count.tolist() == [100, 100, 100, 0]
    assert result.ece.isnan().tolist() == [False, False, False, True]
    assert result.accuracy.isnan().tolist() == [False, False, False, True]
    assert result.integral_ece.isnan()


def test_rows_of_band_minus_one_do_not_count():
    logits, y = random_rows(100)
    logits[60:] = math.nan  # such as the padding of a last batch
    band = torch.where(torch.arange(100) < 60, 0, -1)
    assert torch.equal(measured(logits, y, band).sums, measured(logits[:60], y[:60]).sums)


def test_a_network_that_diverged_is_seen():
    logits, y = random_rows(10)
    logits[3] = math.nan
    result = measured(logits, y)
    assert result.ece.isnan().all() and result.count.item() == 10


def test_two_halves_merged_and_any_order_equal_the_whole():
    logits, y = random_rows(400)
    band = torch.arange(400) % 3
    whole = measured(logits, y, band, bands=3)
    first, second = CalibrationByNoise(3), CalibrationByNoise(3)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(2))
    for rows in order[:150].split(40):
        first.update(logits[rows], y[rows], band[rows])
    for rows in order[150:].split(70):
        second.update(logits[rows], y[rows], band[rows])
    first.merge_state(second)
    assert_close(first.compute().sums, whole.sums, **EXACT)


def test_low_precision_logits_are_read_at_full_precision():
    logits, y = random_rows(100)
    low = logits.bfloat16()
    assert torch.equal(measured(low, y).sums, measured(low.float(), y).sums)


def test_result_is_not_changed_by_later_rows():
    logits, y = random_rows(100)
    metric = CalibrationByNoise(1)
    metric.update(logits, y, 0)
    early = metric.compute()
    metric.update(logits, y, 0)
    assert early.count.item() == 100 and metric.compute().count.item() == 200
    metric.reset()
    assert metric.sums.sum() == 0


def test_metric_copies_pickles_and_moves_in_float64():
    logits, y = random_rows(100)
    metric = CalibrationByNoise(2)
    metric.update(logits, y, 1)
    for twin in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
        assert torch.equal(twin.compute().sums, metric.compute().sums)
    assert metric.half().sums.dtype == torch.float64
    assert metric.state_dict() == {}
    assert metric.to("meta").sums.device.type == "meta"


def test_band_of_is_right_closed_like_the_bins():
    sigma = torch.tensor([0.0, 0.1, 0.2, 1.0, 1.1, 80.0])
    assert band_of(sigma, [0.1, 1.0]).tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("edges", [[1.0, 0.1], [0.1, 0.1]])
def test_edges_that_do_not_increase_are_refused(edges):
    with pytest.raises(ValueError, match="must increase"):
        band_of(torch.ones(1), edges)


def test_level_of_finds_listed_levels_alone():
    levels = [0.0, 0.1, 2.5, 80.0]
    sigma = torch.tensor([80.0, 0.1, 0.0, 2.5 * (1 + 1e-6), 0.11, 2.49, 1e-3])
    assert level_of(sigma, levels).tolist() == [3, 1, 0, 2, -1, -1, -1]


def test_wilson_limits_solve_their_equation():
    """Each limit p is z standard errors, taken at p itself, from the proportion. Wilson (1927)."""
    correct, count = torch.tensor([7.0, 0.0, 50.0]).double(), torch.tensor([9.0, 20, 50]).double()
    for limit in wilson_limits(correct, count):
        variance = limit * (1 - limit) / count
        assert_close((correct / count - limit) ** 2, 1.959963984540054**2 * variance, **EXACT)
    low, high = wilson_limits(correct, count)
    assert (low < correct / count).tolist() == [True, False, True]
    assert (high > correct / count).tolist() == [True, True, False]
    assert all(limit.isnan() for limit in wilson_limits(torch.zeros(()), torch.zeros(())))


def test_beats_chance_needs_more_than_luck():
    """Of ten classes: 15 of 100 has lower limit 0.093, 20 of 100 has 0.133."""
    sums = torch.zeros(3, 3, 1, dtype=torch.float64)
    sums[0, :2] = 100
    sums[2, :2, 0] = torch.tensor([15.0, 20.0])
    result = Reliability(sums)
    assert_close(result.limits[0][:2], torch.tensor([0.0931, 0.1334]).double(), rtol=0, atol=1e-4)
    assert result.beats_chance(10).tolist() == [False, True, False]


@pytest.mark.parametrize("wrong", [{"bands": 0}, {"bands": 2, "num_bins": 0}])
def test_no_band_or_no_bin_is_refused(wrong):
    with pytest.raises(ValueError, match="at least one"):
        CalibrationByNoise(**wrong)
