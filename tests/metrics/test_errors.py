import math

import pytest
import torch
from torch.testing import assert_close
from torch_uncertainty.metrics.classification import (
    AdaptiveCalibrationError,
    BrierScore,
    CalibrationError,
    CategoricalNLL,
    ClasswiseCalibrationError,
    SmoothCalibrationError,
)

from robustguide.metrics import (
    adaptive_ece,
    bin_of,
    brier,
    class_gaps,
    classwise_ece,
    nll,
    smooth_ece,
    tally,
)
from robustguide.metrics.errors import smoothed_error

EXACT = {"rtol": 0, "atol": 1e-12}
CLOSE = {"rtol": 0, "atol": 1e-6}


def rows(n=1200, k=6, seed=0, sharpness=1.0, calibration=0.7):
    """Logits whose labels are drawn with `calibration` times them: over-confident ones."""
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(n, k, generator=generator, dtype=torch.float64)
    y = torch.multinomial((calibration * logits).softmax(-1), 1, generator=generator)[:, 0]
    return logits, y


def top(logits, y):
    confidence, label = logits.softmax(-1).max(-1)
    return confidence, label == y


def theirs(metric, logits, y):
    """The other's answer, in float64 where it knows that."""
    torch.set_default_dtype(torch.float64)
    try:
        metric.update(logits.softmax(-1), y)
        return metric.compute().double()
    finally:
        torch.set_default_dtype(torch.float32)


def classwise(logits, y, num_bins):
    return classwise_ece(class_gaps(logits.softmax(-1), y, num_bins), len(y))


@pytest.mark.parametrize("k", [2, 6, 40])
@pytest.mark.parametrize("num_bins", [10, 15])
def test_binned_errors_agree_with_torch_uncertainty(k, num_bins):
    logits, y = rows(k=k)
    confidence, correct = top(logits, y)
    sums = tally(confidence, correct, torch.zeros_like(y), bands=1, num_bins=num_bins)
    multiclass = {"task": "multiclass", "num_classes": k, "num_bins": num_bins, "norm": "l1"}
    ece = (sums[1] - sums[2]).abs().sum() / len(y)
    assert_close(ece, theirs(CalibrationError(**multiclass), logits, y), **CLOSE)
    adaptive = theirs(AdaptiveCalibrationError(**multiclass), logits, y)
    assert_close(adaptive_ece(confidence, correct, num_bins), adaptive, **CLOSE)
    by_class = theirs(ClasswiseCalibrationError(k, num_bins), logits, y)
    assert_close(classwise(logits, y, num_bins), by_class, **CLOSE)
    assert min(ece, adaptive, 40 * by_class) > 0.02


@pytest.mark.parametrize("k", [2, 6, 1000])
def test_scores_agree_with_torch_uncertainty(k):
    logits, y = rows(400, k)
    assert_close(brier(logits, y), theirs(BrierScore(k, reduction="none"), logits, y), **CLOSE)
    assert_close(nll(logits, y), theirs(CategoricalNLL(reduction="none"), logits, y), **CLOSE)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("calibration", [-1.0, 0.0, 0.5, 0.9, 1.0, 1.5])
@pytest.mark.parametrize("sharpness", [0.5, 2.0])
def test_smooth_error_agrees_with_torch_uncertainty(seed, calibration, sharpness):
    """On the grid of the original. Away from 1, where it drops half of what it counts."""
    logits, y = rows(seed=seed, sharpness=sharpness, calibration=calibration)
    inside = top(logits, y)[0] < 0.999
    logits, y = logits[inside], y[inside]
    want = theirs(SmoothCalibrationError("reflected"), logits, y)
    assert want > 0.005
    assert_close(smooth_ece(*top(logits, y)), want, **CLOSE)


def by_quadrature(confidence, gap, bandwidth):
    """The definition, with all mirror images that matter, by the trapezoidal rule."""
    t = torch.linspace(0, 1, 20001, dtype=torch.float64)
    smoothed = torch.zeros_like(t)
    for c, g in zip(confidence, gap, strict=True):
        for centre in (c - 2, -c, c, 2 - c, c + 2):
            smoothed += g * torch.exp(-0.5 * ((t - centre) / bandwidth) ** 2)
    smoothed /= len(gap) * bandwidth * math.sqrt(2 * math.pi)
    return torch.trapezoid(smoothed.abs(), t)


@pytest.mark.parametrize("bandwidth", [0.02, 0.05, 0.1])
@pytest.mark.parametrize("sharpness", [1.0, 6.0])
def test_smooth_error_is_the_integral_that_defines_it(bandwidth, sharpness):
    """Also for a classifier with most answers at 1. The sum over points is off by some 2%."""
    confidence, correct = top(*rows(60, sharpness=sharpness))
    gap = confidence - correct.double()
    want = by_quadrature(confidence, gap, bandwidth)
    assert_close(smoothed_error(confidence, gap, bandwidth), want, rtol=0.02, atol=0)


def test_saturated_answers_count_in_full():
    """Half at 1, of which 80% are right, half calibrated at 0.7: 0.1, not 0.068 as elsewhere."""
    confidence = torch.tensor([1.0, 0.7]).double().repeat_interleave(500)
    place = torch.arange(1000)
    correct = torch.where(place < 500, place < 400, place < 850)
    assert_close(smooth_ece(confidence, correct).item(), 0.1, rtol=0, atol=2e-3)
    probabilities = torch.stack([confidence, 1 - confidence], dim=1).float()
    metric = SmoothCalibrationError("reflected")
    metric.update(probabilities, (~correct).long())
    assert metric.compute() < 0.07


def test_bandwidth_equals_the_error():
    confidence, correct = top(*rows(sharpness=2.0))
    gap = confidence - correct.double()
    error = smooth_ece(confidence, correct).item()
    bandwidth = math.ceil(error * 1024) / 1024
    assert_close(smoothed_error(confidence, gap, bandwidth).item(), error, rtol=0, atol=1e-3)
    assert bandwidth >= smoothed_error(confidence, gap, bandwidth).item()
    assert bandwidth - 1 / 1024 < smoothed_error(confidence, gap, bandwidth - 1 / 1024).item()


@pytest.mark.parametrize("k", [2, 10, 1000])
def test_scores_of_no_knowledge(k):
    logits, y = torch.zeros(3, 4, k).double(), torch.zeros(3, 4, dtype=torch.long)
    assert_close(nll(logits, y), torch.full((3, 4), math.log(k), dtype=torch.float64), **EXACT)
    assert_close(brier(logits, y), torch.full((3, 4), 1 - 1 / k, dtype=torch.float64), **EXACT)


def test_scores_of_three_to_one_and_of_certainty():
    logits = torch.tensor([[math.log(3), 0], [800, -800]], dtype=torch.float64)
    right, wrong = torch.tensor([0, 0]), torch.tensor([1, 1])
    assert_close(
        nll(logits, right), torch.tensor([math.log(4 / 3), 0], dtype=torch.float64), **EXACT
    )
    assert_close(
        nll(logits, wrong), torch.tensor([math.log(4), 1600], dtype=torch.float64), **EXACT
    )
    assert_close(brier(logits, right), torch.tensor([0.125, 0]).double(), **EXACT)
    assert_close(brier(logits, wrong), torch.tensor([1.125, 2]).double(), **EXACT)


def test_planted_overconfidence_in_closed_form():
    """Logits doubled: 3 to 1 becomes 9 to 1, 9 to 1 becomes 81 to 1; half of the rows each."""
    logits = torch.tensor([[2 * math.log(3), 0], [2 * math.log(9), 0]], dtype=torch.float64)
    logits = logits.repeat_interleave(400, 0)
    place = torch.arange(800)
    y = torch.where(place < 400, place >= 300, place >= 760).long()
    confidence, correct = top(logits, y)
    want = torch.tensor(((9 / 10 - 3 / 4) + (81 / 82 - 9 / 10)) / 2).double()
    for bins in (2, 20):
        assert_close(adaptive_ece(confidence, correct, bins), want, **CLOSE)
    assert_close(classwise(logits, y, 15), want, **CLOSE)
    assert_close(smooth_ece(confidence, correct), want, rtol=0, atol=2e-4)


@pytest.mark.parametrize("accuracy", [0.0, 0.25, 1.0])
def test_full_confidence_with_accuracy_a_is_off_by_one_minus_a(accuracy):
    confidence = torch.ones(40, dtype=torch.float64)
    correct = torch.arange(40) < round(40 * accuracy)
    for error in (adaptive_ece(confidence, correct, 15), smooth_ece(confidence, correct)):
        assert_close(error.item(), 1 - accuracy, **EXACT)
    probabilities = torch.stack([confidence, 1 - confidence], dim=1)
    gaps = class_gaps(probabilities, (~correct).long(), 15)
    assert_close(classwise_ece(gaps, 40).item(), 1 - accuracy, **EXACT)


def test_one_bin_is_the_gap_between_confidence_and_accuracy():
    logits, y = rows()
    confidence, correct = top(logits, y)
    gap = (confidence.mean() - correct.double().mean()).abs()
    assert_close(adaptive_ece(confidence, correct, 1), gap, **EXACT)
    shares = torch.nn.functional.one_hot(y, 6).double().mean(0)
    want = (logits.softmax(-1).mean(0) - shares).abs().mean()
    assert_close(classwise(logits, y, 1), want, rtol=0, atol=1e-9)


def test_calibrated_rows_have_small_errors():
    logits, y = rows(40_000, calibration=1.0)
    confidence, correct = top(logits, y)
    # an empty bin's error is sqrt(p q / n) at most: 0.5 sqrt(15 / n) over 15 bins
    assert adaptive_ece(confidence, correct, 15) < 0.5 * math.sqrt(15 / 40_000)
    # of noise sqrt(p q) of each row: h = 0.8 sqrt(p q / (2 sqrt(pi) h n)) or less
    assert smooth_ece(confidence, correct) < (0.4 / math.sqrt(3.54 * 40_000)) ** (2 / 3)
    assert classwise(logits, y, 15) < 0.5 * math.sqrt(15 / 40_000)


def test_errors_do_not_depend_on_the_order_of_rows_even_of_equal_confidence():
    """Of 40 equal confidences 28 are correct; an edge runs through them."""
    ties = torch.full((40,), 0.7, dtype=torch.float64)
    confidence = torch.cat([ties, torch.linspace(0.71, 1, 60, dtype=torch.float64)])
    correct = torch.arange(100) % 10 < 7
    want = adaptive_ece(confidence, correct, 4)
    assert_close(adaptive_ece(confidence[:40], correct[:40], 4).item(), 0.0, **EXACT)
    for seed in range(5):
        order = torch.randperm(100, generator=torch.Generator().manual_seed(seed))
        assert adaptive_ece(confidence[order], correct[order], 4) == want


def test_class_sums_are_integers_and_exact_in_any_order():
    logits, y = rows(999)
    probabilities = logits.softmax(-1)
    whole = class_gaps(probabilities, y, 15)
    order = torch.randperm(999, generator=torch.Generator().manual_seed(0))
    parts = [class_gaps(probabilities[part], y[part], 15) for part in order.split(70)]
    assert whole.dtype == torch.int64 and torch.equal(torch.stack(parts).sum(0), whole)
    exact = torch.zeros(6, 15, dtype=torch.float64)
    for k in range(6):
        gap = probabilities[:, k] - (y == k).double()
        exact[k].index_add_(0, bin_of(probabilities[:, k], 15), gap)
    assert_close(whole.double() / 2**32, exact, rtol=0, atol=999 * 2**-33)


def test_more_bins_than_rows_leave_bins_empty():
    confidence, correct = (
        torch.tensor([0.6, 0.9], dtype=torch.float64),
        torch.tensor([True, False]),
    )
    assert_close(adaptive_ece(confidence, correct, 15).item(), 0.65, **EXACT)


def test_a_single_row():
    confidence, correct = torch.tensor([0.8], dtype=torch.float64), torch.tensor([True])
    assert_close(adaptive_ece(confidence, correct, 15).item(), 0.2, **EXACT)
    assert_close(smooth_ece(confidence, correct).item(), 0.2, **CLOSE)


def test_bins_are_right_closed():
    probabilities = torch.tensor([0.0, 0.25, 0.26, 0.5, 1.0])
    assert bin_of(probabilities, 4).tolist() == [0, 0, 1, 1, 3]
