"""The calibration penalty: against its definition, its limits, and its gradient."""

import math

import pytest
import torch
from jsonargparse import auto_cli

from robustguide.modules import CalibrationPenalty
from robustguide.modules.penalty import smoothed_error

F64 = torch.float64


def drawn(rows=200, classes=5, seed=0, scale=2.0, dtype=F64):
    """Random logits, labels that follow them a little, and noise levels."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(rows, classes, generator=generator, dtype=F64)
    y = torch.multinomial((0.5 * logits).softmax(-1), 1, generator=generator)[:, 0]
    sigma = torch.rand(rows, generator=generator) * 4
    return logits.to(dtype), y, sigma


def judged(logits, y):
    confidence, label = logits.softmax(-1).max(-1)
    return confidence, label == y


def by_definition(confidence, correct, bandwidth, points=2_000):
    """Residuals spread by a Gaussian whose images beyond 0 and 1 are folded back."""
    t = (torch.arange(points, dtype=F64) + 0.5) / points
    kernel = 0
    for fold in range(-6, 7):
        for sign in (-1, 1):
            offset = (t[:, None] - sign * confidence - 2 * fold) / bandwidth
            kernel = kernel + (-(offset**2) / 2).exp() / (bandwidth * math.sqrt(2 * math.pi))
    residual = confidence - correct.to(F64)
    return (kernel @ residual / len(residual)).abs().mean()


@pytest.mark.parametrize("bandwidth", [0.02, 0.1, 0.3, 1.0])
def test_it_is_the_smooth_calibration_error(bandwidth):
    confidence, correct = judged(*drawn(rows=60)[:2])
    expected = by_definition(confidence, correct, bandwidth)
    error = smoothed_error(confidence, correct, bandwidth)
    torch.testing.assert_close(error, expected, atol=5e-4, rtol=0)
    assert error > 0.01


@pytest.mark.parametrize("bandwidth", [0.001, 0.02, 0.1, 1.0])
@pytest.mark.parametrize("confidence, right", [(0.7, 4), (0.7, 10), (1.0, 3), (0.01, 0)])
def test_one_confidence_is_off_by_what_it_is_off(bandwidth, confidence, right):
    rows = torch.full((10,), confidence, dtype=F64)
    error = smoothed_error(rows, torch.arange(10) < right, bandwidth)
    assert error.item() == pytest.approx(abs(confidence - right / 10), abs=1e-5)


def test_a_calibrated_batch_pays_nothing():
    """Of ten rows at a confidence of j/10, j are right; each j in a band of its own as well."""
    share = torch.arange(1, 11).repeat_interleave(10)
    right = torch.arange(10).repeat(10) < share
    assert smoothed_error(share.to(F64) / 10, right, 0.05) < 1e-12
    assert smoothed_error(share.to(F64) / 10, right, 0.05, share - 1, 10) < 1e-12


def confident(confidence, classes):
    """Logits of class 0 with a given probability, the others alike."""
    logits = torch.zeros(len(confidence), classes, dtype=F64)
    logits[:, 0] = (confidence * (classes - 1) / (1 - confidence)).log()
    return logits


@pytest.mark.parametrize("classes", [2, 1000])
def test_faults_of_two_levels_do_not_cancel_between_bands(classes):
    """At 0.8 everywhere, 0.6 is right at one level and all at the other."""
    logits = confident(torch.full((20,), 0.8, dtype=F64), classes)
    y = torch.zeros(20, dtype=torch.long)
    y[:4] = 1
    sigma = torch.tensor([0.5] * 10 + [2.0] * 10)
    assert CalibrationPenalty(1.0)(logits, y, sigma) < 1e-8
    for edges in ([0.5], [1.0], [0.1, 1.0, 3.0]):  # an edge belongs to the band below it
        error = CalibrationPenalty(1.0, edges=edges)(logits, y, sigma)
        assert error.item() == pytest.approx(0.2, abs=1e-6)


def test_bands_weigh_their_rows():
    logits, y, sigma = drawn(scale=3.0)
    error = CalibrationPenalty(1.0, edges=[0.4, 3.0])(logits, y, sigma)
    parts = [sigma <= 0.4, (sigma > 0.4) & (sigma <= 3.0), sigma > 3.0]
    each = [smoothed_error(*judged(logits[rows], y[rows]), 0.1) for rows in parts]
    counts = [int(rows.sum()) for rows in parts]
    assert min(counts) > 10 and len(set(counts)) == 3
    expected = sum(n * one for n, one in zip(counts, each, strict=True)) / len(y)
    torch.testing.assert_close(error, expected)


@pytest.mark.parametrize("edges", [None, [1.0, 2.0]])
def test_gradient_against_finite_differences(edges):
    logits, y, sigma = drawn(rows=12, classes=4)
    penalty = CalibrationPenalty(1.0, edges=edges)
    assert torch.autograd.gradcheck(
        lambda logits: penalty(logits, y, sigma), logits.requires_grad_(), raise_exception=True
    )


def test_gradient_where_all_are_wrong_is_that_of_the_mean_confidence():
    logits, _, sigma = drawn(rows=30)
    y = logits.argmin(-1)
    logits.requires_grad_()
    error = CalibrationPenalty(1.0)(logits, y, sigma)
    mean = logits.softmax(-1).amax(-1).mean()
    torch.testing.assert_close(error, mean, atol=1e-7, rtol=0)
    (gradient,) = torch.autograd.grad(error, logits)
    (expected,) = torch.autograd.grad(mean, logits)
    torch.testing.assert_close(gradient, expected, atol=1e-8, rtol=1e-6)


def test_descent_finds_the_temperature():
    """Logits of a calibrated classifier times 3: the factor that undoes it leaves no error."""
    share = torch.arange(11, 20).repeat_interleave(20)  # top of two classes: 0.55 to 0.95
    y = (torch.arange(20).repeat(9) >= share).long()
    logits = 3 * confident(share.to(F64) / 20, 2)
    penalty, sigma = CalibrationPenalty(1.0), torch.ones(len(y))
    factors = torch.linspace(0.1, 2.0, 39, dtype=F64)  # steps of 0.05
    errors = torch.stack([penalty(f * logits, y, sigma) for f in factors])
    assert abs(factors[errors.argmin()].item() - 1 / 3) <= 0.025
    assert penalty(logits / 3, y, sigma) < 1e-9 < 0.05 < penalty(logits, y, sigma)


def test_autocast_and_half_precision_change_no_bit_of_it():
    logits, y, sigma = drawn(dtype=torch.bfloat16)
    penalty = CalibrationPenalty(1.0, edges=[1.0])
    outside = penalty(logits.float(), y, sigma)
    assert outside.dtype == torch.float32
    assert torch.equal(penalty(logits, y, sigma), outside)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(penalty(logits, y, sigma), outside)


def test_it_never_waits_for_the_device():
    """A tensor without memory has no value that the host could ask for."""
    logits, y, sigma = (part.to("meta") for part in drawn(dtype=torch.float32))
    error = CalibrationPenalty(1.0, edges=[0.5, 1.0])(logits.requires_grad_(), y, sigma)
    (gradient,) = torch.autograd.grad(error, logits)
    assert error.device.type == "meta" and gradient.shape == logits.shape


def test_rows_that_are_few_or_sure():
    one = CalibrationPenalty(1.0)(torch.tensor([[2.0, 0.0]]), torch.tensor([1]), torch.ones(1))
    assert one.item() == pytest.approx(1 / (1 + math.exp(-2)), abs=1e-6)
    sure = torch.tensor([[1e4, -1e4], [1e4, -1e4]], requires_grad=True)
    error = CalibrationPenalty(1.0)(sure, torch.tensor([0, 1]), torch.ones(2))
    error.backward()
    assert error.item() == pytest.approx(0.5, abs=1e-6) and sure.grad.isfinite().all()
    lost = CalibrationPenalty(1.0)(
        torch.tensor([[math.nan, 0.0]]), torch.tensor([1]), torch.ones(1)
    )
    assert lost.isnan()  # a training that diverged is not hidden


@pytest.mark.parametrize(
    "given, message",
    [
        ({"weight": 0.0}, "positive number, got 0.0; set penalty: null"),
        ({"weight": math.nan}, "positive number, got nan"),
        ({"weight": 1.0, "bandwidth": 0.0}, "from 0.001 to 1, got 0.0; 0.1"),
        ({"weight": 1.0, "bandwidth": math.nan}, "from 0.001 to 1, got nan"),
        ({"weight": 1.0, "edges": [1.0, 0.5]}, r"must increase, got \[1.0, 0.5\]; sort"),
    ],
)
def test_bad_arguments(given, message):
    with pytest.raises(ValueError, match=message):
        CalibrationPenalty(**given)


def build(penalty: CalibrationPenalty | None = None) -> CalibrationPenalty | None:
    return penalty


@pytest.mark.parametrize(
    "args",
    [
        ["--penalty.weight=2", "--penalty.edges=[1, 2]"],
        ['--penalty={"weight": 2, "edges": [1, 2]}'],
        [
            '--penalty={"class_path": "robustguide.modules.CalibrationPenalty", "init_args": '
            '{"weight": 2, "edges": [1, 2]}}'
        ],
    ],
)
def test_yaml_names_it(args):
    assert auto_cli(build, args=args) == CalibrationPenalty(2.0, edges=[1.0, 2.0])
    assert auto_cli(build, args=[]) is None
