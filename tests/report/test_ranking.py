"""The order of candidates and its agreement with outcomes, against scipy and a published table."""

import math
from itertools import permutations

import numpy as np
import pytest
from scipy import stats

from robustguide.report import ranking
from robustguide.report.ranking import Correlation, spearman

# The example of `ci.spear` in Bonett's R package statpsych: 0.8700, 95 % 0.5841 to 0.9638
Y = [21, 4, 9, 12, 35, 18, 10, 22, 24, 1, 6, 8, 13, 16, 19]
X = [67, 28, 30, 28, 52, 40, 25, 37, 44, 10, 14, 20, 28, 40, 51]


def entry(name, ece, frechet=None, flops=100.0, nll=None, **facts):
    one = {"value": frechet, "n": 1000, "extractor": "toy@1", "reference_n": 50}
    made = {
        "name": name,
        "view": "x",
        "setting": name,
        "integral_ece": ece,
        "smooth_ece": 1 - ece,
        "nll": ece if nll is None else nll,
        "accuracy": 0.5,
        "limits": [0.9 * ece, 1.1 * ece],
        "if_calibrated": {"mean": 0.01, "upper95": 0.02},
        "flops": flops,
        "parameters": 1234.0,
        "levels": [0.1, 5.0],
        "bins": 15,
        "n": 3000,
        "is_small": False,
        "metrics": [] if frechet is None else [{"frechet/toy": one, "class_accuracy": {}}],
    }
    return made | facts


def told(*entries, by="ece"):
    outcome = ranking.outcome_of(entries, None)
    return ranking.ordered([ranking.with_outcome(each, outcome) for each in entries], by)


@pytest.mark.parametrize("m", [4, 7, 8, 9, 30])
@pytest.mark.parametrize("distinct", [3, 100])
def test_rho_is_scipys_with_and_without_ties(m, distinct):
    random = np.random.default_rng(m + distinct)
    a, b = random.integers(0, distinct, (2, m))
    a[:2], b[:2] = (0, 1), (1, 2)  # not all alike
    found, want = spearman(a.tolist(), b.tolist()), stats.spearmanr(a, b)
    assert found.rho == pytest.approx(want.statistic, abs=1e-12)


@pytest.mark.parametrize(("m", "most"), [(4, 1e-12), (5, 1e-12), (12, 0.02)])
def test_p_is_that_of_all_orders(m, most):
    """Of 4 and 5 pairs all; of 12, for which Student's t is a good approximation, random ones."""
    random = np.random.default_rng(m)
    a, b = random.normal(size=(2, m))
    b += 0.5 * a
    found = spearman(a.tolist(), b.tolist())
    if m < 10:
        ranks = stats.rankdata(b)
        orders = [stats.spearmanr(a, each).statistic for each in permutations(ranks)]
        want = np.mean(np.abs(orders) >= abs(found.rho) - 1e-9)
    else:
        want = stats.spearmanr(a, b).pvalue
    assert found.p == pytest.approx(want, abs=most)


def test_the_published_interval():
    found = spearman(Y, X)
    assert found.m == 15
    assert found.rho == pytest.approx(0.8699639, abs=1e-7)
    assert found.low == pytest.approx(0.5840951, abs=1e-7)
    assert found.high == pytest.approx(0.9638297, abs=1e-7)
    assert found.p < 0.001


def test_the_interval_holds_what_it_should():
    """Of bivariate normal pairs with r = 0.5, whose rho is 6/pi asin(r/2); Bonett and Wright."""
    random, truth, held = np.random.default_rng(0), 6 / math.pi * math.asin(0.25), 0
    for _ in range(300):
        a = random.normal(size=25)
        b = 0.5 * a + math.sqrt(0.75) * random.normal(size=25)
        low, high = limits(a, b)
        held += low <= truth <= high
    assert held / 300 == pytest.approx(0.95, abs=0.035)


def limits(a, b):
    """The interval without the permutations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "chance", lambda *_: 0.0)
        found = spearman(a.tolist(), b.tolist())
    return found.low, found.high


def test_too_few_pairs_or_no_spread():
    assert spearman([1, 2, 3], [1, 2, 3]) == Correlation(3)
    assert spearman([], []) == Correlation(0)
    assert spearman([1, 1, 1, 1], [1, 2, 3, 4]) == Correlation(4)
    same = spearman([1, 2, 3, 4], [5, 6, 7, 9])
    assert (same.rho, same.low, same.high) == (1, None, None)
    assert same.p == pytest.approx(2 / 24)  # the one order, and its reverse
    with pytest.raises(ValueError, match="got 2 and 1"):
        spearman([1, 2], [1])


def test_order_and_front():
    entries = [entry("dear", 0.01, flops=900), entry("poor", 0.4, flops=500)]
    entries += [entry("good", 0.02, flops=100), entry("twin", 0.02, flops=100)]
    found = told(*entries)
    assert [each["name"] for each in found] == ["dear", "good", "twin", "poor"]
    assert [each["rank"] for each in found] == [1, 2, 3, 4]
    assert [each["front"] for each in found] == [True, True, True, False]
    by_cost = told(*entries, by="cost")
    assert [each["name"] for each in by_cost] == ["good", "twin", "poor", "dear"]
    assert [each["front"] for each in by_cost] == [True, True, False, True]
    assert told(*entries, by="smooth_ece")[0]["name"] == "poor"


def test_agreement_in_words():
    entries = [
        entry(f"r{i}", 0.1 * x, frechet=y, nll=i)
        for i, (x, y) in enumerate(zip(X, Y, strict=True))
    ]
    found = ranking.judged(told(*entries), "ece")
    assert (found["runs"].rho, found["runs"].m) == (pytest.approx(0.8699639, abs=1e-7), 15)
    assert (found["first"], found["places"], found["is_mixed"]) == (["r9"], [1], False)
    text = ranking.verdict(found, "ece")
    assert "m = 15 runs: 0.87, 95 % 0.58 to 0.96; p = 0.0001 by permutation." in text
    assert "First by integral ECE: r9; by distance number 1 of 15." in text
    assert "not even its sign" not in text and "differently" not in text and "why" in text
    backwards = [entry(f"r{i}", i % 3, frechet=i) for i in range(9)]
    assert "not even its sign" in ranking.verdict(ranking.judged(told(*backwards), "nll"), "nll")


def test_runs_that_answer_alike_count_once_with_their_best():
    """Four classifiers; the strength of guidance alone differs between runs of each."""
    entries = [
        entry(f"{ece}-{scale}", ece, frechet=10 * ece + scale)
        for ece in (0.1, 0.2, 0.3, 0.4)
        for scale in (0.0, 5.0)
    ]
    found = ranking.judged(told(*entries), "ece")
    assert (found["runs"].m, found["settings"].m, found["settings_count"]) == (8, 4, 4)
    want = stats.spearmanr(
        [e["integral_ece"] for e in entries],
        [10 * ece + scale for ece in (0.1, 0.2, 0.3, 0.4) for scale in (0.0, 5.0)],
    ).statistic
    assert found["runs"].rho == pytest.approx(want) and want < 1
    assert found["settings"].rho == 1
    assert found["places"] == [1, 5]
    text = ranking.verdict(found, "ece")
    assert (
        "4 of them answer differently; each of these once, with its best run: 1.00, without"
        in text
    )
    assert "by distance numbers 1, 5 of 8" in text


def test_nothing_is_said_of_three():
    found = ranking.judged(told(*[entry(str(i), i, frechet=i) for i in range(3)]), "ece")
    assert "cannot be said: 3 candidates have both, and 4 are the least" in ranking.verdict(
        found, "ece"
    )
    alike = [entry(str(i), 0.1, frechet=i) for i in range(5)]
    text = ranking.verdict(ranking.judged(told(*alike), "ece"), "ece")
    assert "none, since all values are equal" in text and "too few, 4 are the least" in text


def test_distances_of_other_images_or_features_are_not_alike():
    entries = [entry(str(i), i, frechet=i + 1.0) for i in range(4)]
    entries[2]["metrics"][0]["frechet/toy"]["n"] = 50
    found = ranking.judged(told(*entries), "ece")
    assert found["is_mixed"] and "different numbers of images" in ranking.verdict(found, "ece")


def test_the_outcome_is_the_usual_one_or_that_asked_for():
    entries = [entry(str(i), i, frechet=i) for i in range(3)]
    entries[0]["metrics"][0]["frechet/other"] = {"value": 7.0, "n": 1}
    assert ranking.outcome_of(entries, None) == "frechet/toy"
    assert ranking.outcome_of(entries, "frechet/other") == "frechet/other"
    assert ranking.outcome_of([entry("a", 1)], None) is None
    with pytest.raises(ValueError, match="frechet/other, frechet/toy"):
        ranking.outcome_of(entries, "frechet/none")
    blocks = entry("a", 1, frechet=2.0)
    blocks["metrics"].append({"frechet/toy": {"value": 4.0, "n": 1000}})
    assert ranking.with_outcome(blocks, "frechet/toy")["frechet"] == 3
    blocks["metrics"].append({"frechet/toy": {"value": "nan", "n": 1000}})
    assert ranking.with_outcome(blocks, "frechet/toy")["frechet"] is None
    assert ranking.with_outcome(entry("a", 1), "frechet/toy")["frechet"] is None


def test_the_table():
    found = told(entry("a", 0.25, frechet=1.5, flops=1_230_000), entry("b", 0.5, flops=99e9))
    made = ranking.table(found)
    assert list(made.rows[0]) == [
        "1*",
        "a",
        "x",
        "0.250",
        "0.225-0.275",
        "50.0 %",
        "1.23M",
        "1.23k",
        "1.500",
    ]
    assert made.rows[1][0] == "2" and made.rows[1][-3:] == ["99G", "1.23k", "—"]
    assert "2 noise levels, sigma 0.1 to 5, of 15 bins and n = 3000" in made.caption
    assert "biased" not in made.caption
    small = told(entry("a", 0.25, is_small=True))
    assert "n is below 2000: ECE is biased upwards" in ranking.table(small).caption
    assert "Fréchet" not in ranking.table(small).columns
    assert ranking.table(small, "nll").rows[0][5] == "0.250"
    assert [ranking.short(value) for value in (0, 999, 1e3, 2.5e12)] == ["0", "999", "1k", "2.5T"]


def test_the_figure_shows_each_run_at_its_place():
    entries = told(
        *[entry(str(i), 0.1 + 0.01 * i, frechet=5.0 - i) for i in range(4)], entry("c", 1)
    )
    axes = ranking.scatter(entries, "ece", "frechet/toy").axes[0]
    line = axes.lines[0]
    order = np.argsort(line.get_xdata())
    np.testing.assert_allclose(np.asarray(line.get_xdata())[order], [0.1, 0.11, 0.12, 0.13])
    np.testing.assert_allclose(np.asarray(line.get_ydata(), float)[order], [5, 4, 3, 2])
    bars = sorted(tuple(segment[:, 0]) for segment in axes.collections[0].get_segments())
    np.testing.assert_allclose(bars, [(0.9 * x, 1.1 * x) for x in (0.1, 0.11, 0.12, 0.13)])
    assert {text.get_text() for text in axes.texts} == {"0", "1", "2", "3"}
    assert "toy" in axes.get_ylabel()
    with pytest.raises(ValueError, match="no candidate has one; give --runs"):
        ranking.scatter(told(entry("a", 0.1)), "ece", "")
