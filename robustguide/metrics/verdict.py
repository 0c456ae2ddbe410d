"""Whether a number of fewer images agrees with a published one.

A Frechet distance falls with the number of images along a straight line in 1/n (Chong and Forsyth
2020), so a published one is carried along the line of our own samples to their n, and its limits
hold the noise of our line, that of one published run, and its rounding. Where the best of several
runs was reported, it lies below their mean by the expected minimum of as many normal numbers.
"""

import math
from dataclasses import dataclass

from robustguide.metrics.comparison import reach_of
from robustguide.metrics.protocol import Measure, count
from robustguide.metrics.score import Entry

# Mean and standard deviation of the least of k normal numbers (Harter 1961, table 1).
LEAST = {1: (0.0, 1.0), 2: (-0.5642, 0.8256), 3: (-0.8463, 0.7480), 4: (-1.0294, 0.7012)}


@dataclass(frozen=True)
class Printed:
    """A number as it was published.

    Attributes:
        text: Its digits.
        images: Behind it.
        runs: Whose best it is.
    """

    text: str
    images: int
    runs: int = 1

    @property
    def rounding(self) -> float:
        """Half of the last digit."""
        return 0.5 * 10.0 ** -len(self.text.partition(".")[2])


@dataclass(frozen=True)
class Verdict:
    """Of one published number.

    Attributes:
        shown: Ours, such as "FID-2k@adm".
        printed: What was published.
        value: Ours.
        expected: 95% limits of ours if the published number is true; null where not comparable.
        word: "consistent", "inconsistent" or "not comparable".
        reason: Why not; empty otherwise.
    """

    shown: str
    printed: Printed
    value: float
    expected: tuple[float, float] | None
    word: str
    reason: str = ""


def verdict(entry: Entry, measure: Measure, printed: Printed) -> Verdict:
    """Compares ours with a published one.

    Args:
        entry: Ours.
        measure: That made it.
        printed: The other.
    """
    told = entry.shown, printed, entry.value
    if len(entry.replicates) < 2:
        return Verdict(*told, None, "not comparable", "nothing is known of the noise of ours")
    shift = carried(entry, printed.images, measure)
    if shift is None:
        reason = f"it depends on n, and needs {count(printed.images)} images"
        return Verdict(*told, None, "not comparable", reason)
    gain, error_of_line = shift
    reach, error = reach_of(entry)
    mean, spread = LEAST[min(printed.runs, max(LEAST))]
    one_run = error * math.sqrt(entry.n / printed.images)  # noise falls with the root of n
    best = mean * one_run * (1 if entry.lower_is_better else -1)
    centre = float(printed.text) - best + gain
    half = reach * math.hypot(error, error_of_line, spread * one_run) + printed.rounding
    limits = centre - half, centre + half
    word = "consistent" if limits[0] <= entry.value <= limits[1] else "inconsistent"
    return Verdict(*told, limits, word)


def carried(entry: Entry, images: int, measure: Measure) -> tuple[float, float] | None:
    """What a number gains on the way from `images` to the n of ours, with its standard error.

    Null where that is not known, since the number depends on n in no known way.
    """
    if entry.n == images or measure.is_unbiased:
        return 0.0, 0.0
    if entry.infinity is None:
        return None
    step = 1 / entry.n - 1 / images
    return entry.infinity["slope"] * step, abs(entry.infinity["slope_error"] * step)
