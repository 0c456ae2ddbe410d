"""Strengths of several methods from comparisons of two at a time: the model of Bradley and Terry.

Method i wins against j with probability

    p_ij = e^{b_i} / (e^{b_i} + e^{b_j})

(Hunter 2004, eq. 1, with gamma_i = e^{b_i}). With w_ij wins of i over j, W_i = sum_j w_ij and
n_ij = w_ij + w_ji, the likelihood rises at every step of

    gamma_i <- W_i / sum_{j != i} n_ij / (gamma_i + gamma_j)                  (Hunter 2004, eq. 3)

towards its only maximum, which exists when no two groups of methods are such that none of one ever
won against the other (his assumption 1): when the graph of wins is strongly connected. A tie is
half a win for each. Strengths are b, in natural logarithms of odds, centred to a sum of 0. Their
errors are of the information, I_ij = -n_ij p_ij p_ji off the diagonal, with rows that sum to 0:
its pseudo-inverse is the covariance under that sum.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

STEPS = 100_000
CLOSE = 1e-12  # of a step in b


class Unidentified(ValueError):
    """No finite strengths fit the comparisons."""


@dataclass(frozen=True)
class Strengths:
    """Of methods.

    Attributes:
        values: Log odds, summing to 0.
        standard_errors: As if all answers were independent.
    """

    values: Float[np.ndarray, " m"]
    standard_errors: Float[np.ndarray, " m"]


def fit(wins: Float[np.ndarray, "m m"], names: Sequence[str]) -> Strengths:
    """Strengths of the largest likelihood.

    Args:
        wins: Of the method of each row over that of each column; a tie is half a win for both.
        names: Of the methods, for the error.

    Raises:
        Unidentified: Where there are none, with the methods that are to blame.
    """
    require_connected(wins, names)
    played, won = wins + wins.T, wins.sum(1)
    b = np.zeros(len(wins))
    for _ in range(STEPS):
        gamma = np.exp(b)
        # in logarithms, so that strengths far apart neither overflow nor vanish
        step = np.log(won) - np.log((played / (gamma[:, None] + gamma)).sum(1))
        step -= step.mean()
        close = np.abs(step - b).max() < CLOSE
        b = step
        if close:
            break
    return Strengths(b, np.sqrt(np.diag(np.linalg.pinv(information(b, played), hermitian=True))))


def information(
    b: Float[np.ndarray, " m"], played: Float[np.ndarray, "m m"]
) -> Float[np.ndarray, "m m"]:
    """Fisher's, of the strengths; singular, since a common shift changes nothing."""
    p = 1 / (1 + np.exp(b - b[:, None]))
    weights = played * p * p.T
    found: np.ndarray = np.diag(weights.sum(1)) - weights
    return found


def require_connected(wins: Float[np.ndarray, "m m"], names: Sequence[str]) -> None:
    """Looks whether finite strengths exist.

    Raises:
        Unidentified: If they do not.
    """
    beats = reaches(wins > 0)
    compared = reaches((wins + wins.T) > 0)
    if not compared.all():
        apart = [name for name, is_met in zip(names, compared[0], strict=True) if not is_met]
        raise Unidentified(
            f"no answers compare {listed(apart)} with {names[0]}, directly or through others"
        )
    if beats.all():
        return
    # Methods that beat each other, at least through others, are a group; one of the groups never
    # loses to the rest.
    mutual = beats & beats.T
    above = next(row for row in range(len(wins)) if (mutual[row] == beats[:, row]).all())
    group = [name for name, is_in in zip(names, mutual[above], strict=True) if is_in]
    rest = [name for name in names if name not in group]
    raise Unidentified(
        f"{listed(rest)} never won against {listed(group)}, so their distance has no finite value"
    )


def reaches(edges: Bool[np.ndarray, "m m"]) -> Bool[np.ndarray, "m m"]:
    """Whether a way of edges leads from each row to each column; each reaches itself."""
    found = edges | np.eye(len(edges), dtype=bool)
    for middle in range(len(edges)):
        found |= found[:, middle, None] & found[middle]
    return found


def listed(names: Sequence[str]) -> str:
    """In words."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
