"""Whether two scores differ by more than their seeds."""

import math
from dataclasses import dataclass

from robustguide.metrics.jackknife import Jackknife, difference
from robustguide.metrics.score import Entry, Score, difference_of_protocols


@dataclass(frozen=True)
class Difference:
    """Of one number.

    Attributes:
        key: Such as "fid/adm".
        a, b: The two numbers.
        value: b - a.
        interval: 95% limits; null where nothing is known of the noise.
        verdict: "a better", "b better", "seed noise" or "noise not known".
    """

    key: str
    a: Entry
    b: Entry
    value: float
    interval: tuple[float, float] | None
    verdict: str


def compare(a: Score, b: Score, names: tuple[str, str]) -> tuple[list[Difference], bool]:
    """Differences of all numbers that both have, and whether they are paired by seed.

    Paired, the groups of the jackknife hold the same seeds on both sides, and what both have in
    common cancels. Otherwise the variances add.

    Raises:
        ValueError: For scores of different protocols, references, extractors or n, or without a
            common number.
    """
    reason = difference_of_protocols(a, b, names)
    if reason is not None:
        raise ValueError(
            f"These scores cannot be compared: {reason}. Score both by one protocol, with one "
            "reference and equally many images (`robustguide score --n`)."
        )
    keys = [key for key in a.entries if key in b.entries]
    if not keys:
        raise ValueError(
            f"{names[0]} has {', '.join(a.entries)}, {names[1]} has {', '.join(b.entries)}: no "
            "number in common."
        )
    paired = a.seeds == b.seeds
    return [_difference(key, a.entries[key], b.entries[key], paired) for key in keys], paired


def _difference(key: str, a: Entry, b: Entry, paired: bool) -> Difference:
    interval = interval_of(a, b, paired)
    value = b.value - a.value
    verdict = "noise not known"
    if interval is not None:
        verdict = "seed noise"
        if interval[0] > 0 or interval[1] < 0:
            verdict = "b better" if (value < 0) == a.lower_is_better else "a better"
    return Difference(key, a, b, value, interval, verdict)


def interval_of(a: Entry, b: Entry, paired: bool) -> tuple[float, float] | None:
    """95% limits of b - a; null where one of them has no replicates."""
    if min(len(a.replicates), len(b.replicates)) < 2:
        return None
    value = b.value - a.value
    if paired and len(a.replicates) == len(b.replicates):
        first, second = (Jackknife(each.value, each.replicates) for each in (a, b))
        return difference(second, first).interval()
    (reach_a, error_a), (reach_b, error_b) = reach_of(a), reach_of(b)
    half = max(reach_a, reach_b) * math.hypot(error_a, error_b)
    return value - half, value + half


def reach_of(entry: Entry) -> tuple[float, float]:
    """Half width of a number's interval in standard errors, and its standard error."""
    found = Jackknife(entry.value, entry.replicates)
    (low, high), error = found.interval(), found.standard_error()
    return (0.5 * (high - low) / error if error else 0.0), error
