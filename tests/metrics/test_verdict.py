"""Verdicts on published numbers, on Gaussian features whose distances are known."""

import math

import pytest
import torch

from robustguide.metrics.distances import FrechetMeasure
from robustguide.metrics.extractor import Identity
from robustguide.metrics.extrapolation import extrapolate
from robustguide.metrics.frechet import Moments, frechet_distance
from robustguide.metrics.jackknife import Jackknife, groups_of
from robustguide.metrics.protocol import Sampled
from robustguide.metrics.reference import Provenance, Reference
from robustguide.metrics.score import Entry
from robustguide.metrics.tables import Held
from robustguide.metrics.verdict import LEAST, Printed, verdict

DIM, SHIFT, MANY, FEW = 6, 0.3, 8000, 800
MEASURE = FrechetMeasure("fid", "FID", "pool3")
TRUTH = Moments(10**6, torch.zeros(DIM), torch.eye(DIM))
REFERENCE = Reference("p", Identity("n", None, "r"), Provenance("d"), {"pool3": TRUTH}, {})


def drawn(n, generator, shift=SHIFT):
    features = torch.randn(n, DIM, generator=generator)
    features[:, 0] += shift
    return features


def entry_of(features):
    groups = groups_of(torch.arange(len(features)), 20)
    found = MEASURE.measure(Sampled({"pool3": Held(features)}, groups), REFERENCE)["fid"]
    jackknife = Jackknife(found.value, found.replicates)
    line = extrapolate(Held(features), TRUTH, jackknife).told()
    interval = jackknife.interval()
    shown = f"FID-{len(features)}@p"
    return Entry(found.value, shown, len(features), True, interval, found.replicates, (), line)


def words(shift, count, runs=1):
    """Verdicts on repetitions of a publication and of fewer images."""
    found = []
    for repetition in range(count):
        generator = torch.Generator().manual_seed(repetition)
        values = []
        for _ in range(runs):
            many = Held(drawn(MANY, generator))
            sampled = Sampled({"pool3": many}, torch.zeros(MANY, dtype=torch.long))
            values.append(MEASURE.measure(sampled, REFERENCE)["fid"].value)
        printed = Printed(f"{min(values):.4f}", MANY, runs)
        found.append(verdict(entry_of(drawn(FEW, generator, shift)), MEASURE, printed).word)
    return found


@pytest.mark.parametrize("runs", [1, 3])
def test_the_same_law_is_consistent(runs):
    found = words(SHIFT, 20, runs)
    assert found.count("consistent") >= 17  # 95% of 20 are 19; below 17 once in 60 sets


def test_another_law_is_not():
    assert words(2.5 * SHIFT, 10).count("inconsistent") >= 9


def test_few_images_are_biased_by_as_much_as_theory_says():
    """Without the line this would be taken for a difference: E d = d/n + d (d + 1) / (4 n)."""
    generator = torch.Generator().manual_seed(0)
    found = [frechet_distance(Moments.of(drawn(FEW, generator, 0.0)), TRUTH) for _ in range(100)]
    bias = DIM / FEW + DIM * (DIM + 1) / (4 * FEW)  # of the mean, and of roots to second order
    assert float(torch.tensor(found).mean()) == pytest.approx(bias, rel=0.1)


def test_limits_hold_the_rounding():
    entry = Entry(3.0, "FID-2k@p", 2000, True, None, (3.0, 3.0, 3.0))
    found = verdict(entry, MEASURE, Printed("3.0", 2000))
    assert found.expected == pytest.approx((2.95, 3.05))
    assert verdict(entry, MEASURE, Printed("3.06", 2000)).word == "inconsistent"


def test_what_depends_on_n_unknown_is_not_compared():
    entry = Entry(0.8, "Precision-2k@adm", 2000, False, None, (0.8, 0.79, 0.81))
    found = verdict(entry, MEASURE, Printed("0.82", 50_000))
    assert (found.word, found.expected) == ("not comparable", None)
    assert "50k images" in found.reason
    quiet = Entry(0.8, "Precision-2k@adm", 2000, False)
    assert "noise" in verdict(quiet, MEASURE, Printed("0.82", 2000)).reason


@pytest.mark.parametrize("runs", LEAST)
def test_moments_of_the_least_of_normal_numbers(runs):
    generator = torch.Generator().manual_seed(1)
    least = torch.randn(200_000, runs, generator=generator).min(1).values
    mean, spread = LEAST[runs]
    assert float(least.mean()) == pytest.approx(mean, abs=4 / math.sqrt(200_000))
    assert float(least.std()) == pytest.approx(spread, abs=0.01)
