"""How often one of two methods wins, how sure that is, and how many answers make it so.

A tie is half a win for each. The interval of Wilson (1927) is that of independent answers; ties
spread less than wins and losses, so with them it is rather too wide. Answers of one rater are not
independent: beside it stands a jackknife that leaves out one rater at a time.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.special import ndtri

from robustguide.metrics.calibration import wilson_limits
from robustguide.metrics.jackknife import Jackknife

LEVEL = 0.95
Interval = tuple[float, float]


@dataclass(frozen=True)
class Tally:
    """Answers about one of two methods.

    Attributes:
        won: Preferred.
        tied: No difference.
        lost: The other one preferred.
    """

    won: int = 0
    tied: int = 0
    lost: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.won + other.won, self.tied + other.tied, self.lost + other.lost)

    @property
    def count(self) -> int:
        """All answers."""
        return self.won + self.tied + self.lost

    @property
    def wins(self) -> float:
        """Ties are half."""
        return self.won + self.tied / 2

    @property
    def rate(self) -> float | None:
        """Share of wins; null without answers."""
        return self.wins / self.count if self.count else None

    def wilson(self) -> Interval | None:
        """95% limits of the share, as if answers were independent; null without answers."""
        if not self.count:
            return None
        wins, count = (
            torch.tensor(x, dtype=torch.float64, device="cpu") for x in (self.wins, self.count)
        )
        low, high = wilson_limits(wins, count)
        return float(low), float(high)


def over_raters(tallies: Sequence[Tally]) -> Interval | None:
    """95% limits of the share of wins for other raters, by leaving out each rater in turn.

    The jackknife of `robustguide.metrics.jackknife` with a rater as a group, cut to 0..1.

    Args:
        tallies: One a rater.

    Returns:
        Null for fewer than two raters, and where all replicates are equal: raters whose shares do
        not differ tell nothing about how far others may.
    """
    told = [each for each in tallies if each.count]
    if len(told) < 2:
        return None
    total = sum(told, Tally())
    without = [(total.wins - each.wins) / (total.count - each.count) for each in told]
    if max(without) - min(without) < 1e-12:
        return None
    low, high = Jackknife(total.wins / total.count, tuple(without)).interval(LEVEL)
    return max(low, 0.0), min(high, 1.0)


def needed(margin: float, power: float, level: float = 1 - LEVEL) -> int:
    """How many independent answers show that a method wins more, or less, than half of the time.

    The two-sided test of a share of 1/2, which is whether Wilson's interval leaves out 1/2, finds
    a true share of 1/2 + margin with this power at

        n = ((z_{1 - level/2} / 2 + z_power sqrt(1/4 - margin^2)) / margin)^2

    (Chow, Shao and Wang 2008, p. 85, with the spread of 1/2 under the hypothesis), by the normal
    approximation; answers in steps of one make the exact power a saw around it.

    Args:
        margin: Above 0, below 1/2.
        power: Chance to find it, from above the level to below 1.
        level: Chance to find a margin where there is none.

    Raises:
        ValueError: For numbers out of range.
    """
    if not 0 < margin < 0.5:
        raise ValueError(
            f"--margin is {margin}; expected more than 0 and less than 0.5: 0.05 is a win rate of "
            "55% against 45%."
        )
    if not level < power < 1:
        raise ValueError(f"--power is {power}; expected more than {level:g} and less than 1.")
    spread = math.sqrt(0.25 - margin**2)
    half = float(ndtri(1 - level / 2)) / 2
    return math.ceil(((half + float(ndtri(power)) * spread) / margin) ** 2)
