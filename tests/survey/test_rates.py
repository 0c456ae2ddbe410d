"""Win rates: Wilson's interval against scipy, the jackknife by hand, power by exact binomials."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from robustguide.survey.rates import Tally, needed, over_raters


@pytest.mark.parametrize(("won", "lost"), [(7, 3), (0, 4), (12, 0), (55, 45), (1, 0)])
def test_wilson_is_scipys(won, lost):
    found = Tally(won=won, lost=lost)
    want = stats.binomtest(won, won + lost).proportion_ci(method="wilson")
    assert found.wilson() == pytest.approx((want.low, want.high), abs=1e-12)
    assert found.rate == won / (won + lost)


def test_ties_are_half_a_win():
    assert Tally(2, 4, 2).rate == 0.5
    assert Tally(3, 2, 1).wins == 4 and Tally(3, 2, 1).count == 6
    assert Tally(3, 2, 1).wilson() == pytest.approx(Tally(4, 0, 2).wilson())
    assert Tally(1, 2, 3) + Tally(4, 0, 1) == Tally(5, 2, 4)
    assert Tally().rate is None and Tally().wilson() is None


def test_the_jackknife_over_raters():
    """For raters with equally many answers it is Student's interval of their mean."""
    tallies = [Tally(6, 0, 4), Tally(7, 0, 3), Tally(4, 2, 4), Tally(8, 0, 2)]
    rates = np.array([0.6, 0.7, 0.5, 0.8])
    half = stats.t.ppf(0.975, 3) * rates.std(ddof=1) / 2
    assert over_raters([*tallies, Tally()]) == pytest.approx(
        (rates.mean() - half, rates.mean() + half)
    )


def test_raters_who_tell_nothing_of_others():
    assert over_raters([Tally(6, 0, 4)]) is None
    assert over_raters([Tally(6, 0, 4), Tally()]) is None
    assert over_raters([Tally(5, 0, 0), Tally(9, 0, 0)]) is None  # not 100% of all people
    assert over_raters([Tally(9, 0, 1), Tally(6, 0, 4)]) == (0.0, 1.0)


def test_coverage_where_raters_differ_in_taste():
    """Twelve raters of 25 answers, shares of Beta(3, 2): the jackknife holds 0.6 in 95%."""
    random, sets = np.random.default_rng(0), 1000
    tastes = random.beta(3, 2, (sets, 12))
    held = {"raters": 0, "wilson": 0}
    for won in random.binomial(25, tastes):
        tallies = [Tally(int(k), 0, 25 - int(k)) for k in won]
        for name, (low, high) in (
            ("raters", over_raters(tallies)),
            ("wilson", sum(tallies, Tally()).wilson()),
        ):
            held[name] += low <= 0.6 <= high
    assert held["raters"] / sets == pytest.approx(0.95, abs=0.02)  # 3 standard errors
    assert held["wilson"] / sets < 0.7  # the spread is 2.2 times what it believes


def exact_power(n, share):
    """Chance that Wilson's interval of n answers leaves out 1/2."""
    k = np.arange(n + 1)
    is_found = np.abs(k / n - 0.5) > stats.norm.ppf(0.975) * math.sqrt(0.25 / n)
    return float(stats.binom.pmf(k, n, share)[is_found].sum())


@pytest.mark.parametrize("power", [0.8, 0.9])
@pytest.mark.parametrize("margin", [0.02, 0.05, 0.1, 0.2])
def test_power_by_exact_binomials(margin, power):
    """The mean over a few n around, since exact power goes up and down with each answer."""
    n = needed(margin, power)
    saw = [exact_power(n + shift, 0.5 + margin) for shift in range(-10, 11)]
    assert np.mean(saw) == pytest.approx(power, abs=0.015)
    fewer = [exact_power(round(0.8 * n) + shift, 0.5 + margin) for shift in range(-5, 6)]
    assert np.mean(fewer) < power - 0.04


def test_the_table_of_the_document():
    text = (Path(__file__).parents[2] / "docs/survey.md").read_text()
    rows = re.findall(r"^\| (0\.\d+) \| ([\d,]+) \| ([\d,]+) \|$", text, re.MULTILINE)
    assert len(rows) == 5
    for margin, *told in rows:
        assert told == [f"{needed(float(margin), power):,}" for power in (0.8, 0.9)]


def test_known_numbers_and_limits():
    assert needed(0.05, 0.8) == 783  # ((0.97998 + 0.84162 * 0.49749) / 0.05)^2 = 782.6
    for margin, power in ((0, 0.8), (0.5, 0.8), (-0.1, 0.8), (math.nan, 0.8)):
        with pytest.raises(ValueError, match="--margin is"):
            needed(margin, power)
    for power in (0.05, 1, 0):
        with pytest.raises(ValueError, match="--power is"):
            needed(0.1, power)
