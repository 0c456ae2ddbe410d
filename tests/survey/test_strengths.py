"""Strengths of Bradley and Terry, against scipy's maximum of the likelihood."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_expit, logit

from robustguide.survey.strengths import Unidentified, fit

NAMES = ["a", "b", "c", "d", "e"]


def tournament(m, seed):
    """Wins with halves, of methods that all won and lost."""
    random = np.random.default_rng(seed)
    wins = random.integers(1, 12, (m, m)) / 2.0
    np.fill_diagonal(wins, 0)
    return wins


def negative_likelihood(free, wins):
    b = np.append(free, -free.sum())
    return -(wins * log_expit(b[:, None] - b)).sum()


def curvature(free, wins, step=1e-3):
    """Second derivatives by differences of the fourth order."""
    m, eye = len(free), np.eye(len(free))
    weights = {-2: 1 / 12, -1: -8 / 12, 1: 8 / 12, 2: -1 / 12}
    found = np.zeros((m, m))
    for i in range(m):
        for j in range(m):
            found[i, j] = sum(
                u * v * negative_likelihood(free + step * (x * eye[i] + y * eye[j]), wins)
                for x, u in weights.items()
                for y, v in weights.items()
            )
    return found / step**2


@pytest.mark.parametrize("m", [2, 3, 5])
def test_values_and_errors_are_those_of_the_likelihood(m):
    wins = tournament(m, m)
    want = minimize(
        negative_likelihood, np.zeros(m - 1), (wins,), method="BFGS", options={"gtol": 1e-9}
    )
    found = fit(wins, NAMES[:m])
    assert found.values == pytest.approx(np.append(want.x, -want.x.sum()), abs=1e-6)
    full = np.vstack([np.eye(m - 1), -np.ones(m - 1)])
    covariance = full @ np.linalg.inv(curvature(want.x, wins)) @ full.T
    assert found.standard_errors == pytest.approx(np.sqrt(np.diag(covariance)), rel=1e-4)


def test_two_methods_in_closed_form():
    wins = np.array([[0.0, 30.0], [10.0, 0.0]])
    found = fit(wins, NAMES[:2])
    assert found.values[0] - found.values[1] == pytest.approx(logit(0.75))
    assert found.standard_errors[0] == pytest.approx(0.5 / np.sqrt(40 * 0.75 * 0.25))


def test_not_all_pairs_need_be_compared():
    """A chain: each link tells a difference by itself."""
    wins = np.zeros((3, 3))
    wins[0, 1], wins[1, 0], wins[1, 2], wins[2, 1] = 9, 3, 4, 1
    found = fit(wins, NAMES[:3]).values
    assert found[0] - found[1] == pytest.approx(np.log(3))
    assert found[1] - found[2] == pytest.approx(np.log(4))
    assert found.sum() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ([(0, 1), (1, 0), (0, 2), (1, 2)], "c never won against a and b"),
        ([(0, 1), (2, 0), (2, 1), (0, 2)], "b never won against a and c"),
        ([(0, 1), (0, 2), (1, 2), (2, 1)], "b and c never won against a"),
        ([(0, 1), (1, 2)], "b and c never won against a"),
        ([(0, 1), (1, 0)], "no answers compare c with a"),
        ([(1, 2), (2, 1)], "no answers compare b and c with a"),
    ],
)
def test_what_has_no_finite_strength_is_named(edges, message):
    wins = np.zeros((3, 3))
    for winner, loser in edges:
        wins[winner, loser] = 2
    with pytest.raises(Unidentified, match=message):
        fit(wins, NAMES[:3])
