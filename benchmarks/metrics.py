"""Speed of the metrics against the obvious way, both in one run, with the same values.

    python benchmarks/metrics.py [--rows 10000] [--repeats 3] [--large] [NAME ...]

Each comparison is a function in COMPARISONS that returns rows of the table; to add one, write it
and name it there. The two ways take turns, so that a busy machine slows both. `--large` also
tells the memory and time of precision and recall of 50,000 images, which takes long.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
import turns
from scipy.linalg import sqrtm

from robustguide.metrics.frechet import Moments, frechet_distance


class Row(NamedTuple):
    """One comparison; costs are seconds or bytes, and the ratio of the two is what counts."""

    what: str
    unit: str
    obvious: float
    ours: float
    difference: float


def in_turns(
    obvious: Callable[[], float], ours: Callable[[], float], repeats: int
) -> tuple[float, float, float]:
    """Median seconds of both, and the largest difference of their values relative to the size."""
    seconds: list[list[float]] = [[], []]
    differences = []
    for _ in range(repeats):
        values = []
        for way, spent in zip((obvious, ours), seconds, strict=True):
            start = time.perf_counter()
            values.append(way())
            spent.append(time.perf_counter() - start)
        differences.append(abs(values[0] - values[1]) / abs(values[0]))
    return median(seconds[0]), median(seconds[1]), max(differences)


def frechet(rows: int, repeats: int) -> list[Row]:
    """Frechet distance of two 2048-d statistics; the root of C1 C2 by Schur's decomposition."""
    generator = torch.Generator().manual_seed(0)
    dim = 2048
    scales = torch.arange(1, dim + 1).double() ** -0.5
    mixing = torch.randn(dim, dim, generator=generator, dtype=torch.float64) * scales
    first, second = (
        Moments.of(torch.randn(5000, dim, generator=generator).double() * (1 + k) @ mixing / dim)
        for k in (0.0, 0.2)
    )

    def obvious() -> float:
        one, other = first.covariance.numpy(), second.covariance.numpy()
        root = sqrtm(one @ other).real.trace()
        means = (first.mean - second.mean).square().sum()
        return float(means) + one.trace() + other.trace() - 2 * root

    return [
        Row(
            "Frechet distance, 2 x 2048 features",
            "s",
            *in_turns(obvious, lambda: frechet_distance(first, second), repeats),
        )
    ]


def neighbours(rows: int, repeats: int) -> list[Row]:
    """Precision and recall; obvious are matrices of all distances, each way in its own process.

    One thread each: threads that wait for each other on a busy machine would measure its load.
    """
    found: dict[str, list[dict[str, float]]] = {"dense": [], "single": [], "ours": []}
    for _ in range(repeats):
        for way, runs in found.items():
            runs.append(alone(way, rows, threads=1))
    values = {way: (runs[0]["precision"], runs[0]["recall"]) for way, runs in found.items()}
    compared = []
    for way, what in (("dense", "float64, sorted"), ("single", "float32, kthvalue")):
        difference = max(abs(a - b) for a, b in zip(values[way], values["ours"], strict=True))
        for field, unit, size in (("seconds", "s", 1), ("bytes", "MB", 1e6)):
            costs = [median(run[field] for run in found[each]) / size for each in (way, "ours")]
            compared.append(Row(f"precision, recall, {rows}; {what}", unit, *costs, difference))
    return compared


def alone(way: str, rows: int, threads: int) -> dict[str, float]:
    """Precision and recall in a process of its own, see neighbours.py."""
    script = Path(__file__).with_name("neighbours.py")
    command = [sys.executable, str(script), way, str(rows), str(threads)]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(result.stdout)


COMPARISONS: dict[str, Callable[[int, int], list[Row]]] = {
    "frechet": frechet,
    "neighbours": neighbours,
}


def main() -> None:
    """Reads the command line, measures and tells."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("names", nargs="*", metavar="NAME", help=", ".join(COMPARISONS))
    arguments.add_argument("--rows", type=int, default=10_000, help="images of each side")
    arguments.add_argument("--repeats", type=int, default=3)
    arguments.add_argument("--large", action="store_true", help="our neighbours of 50,000 rows")
    given = arguments.parse_args()
    if unknown := set(given.names) - set(COMPARISONS):
        arguments.error(f"no comparison {unknown}; expected some of {', '.join(COMPARISONS)}")
    facts = dict[str, object]()
    for name in given.names or COMPARISONS:
        for row in COMPARISONS[name](given.rows, given.repeats):
            facts[f"{row.what}, {row.unit}"] = (
                f"obvious {row.obvious:.3g}, ours {row.ours:.3g}: "
                f"{row.obvious / row.ours:.1f} times, values differ by {row.difference:.1e}"
            )
    if given.large:
        run = alone("ours", 50_000, torch.get_num_threads())
        facts["precision, recall, 50000"] = (
            f"{run['seconds']:.0f} s, {run['resident'] / 1e6:.0f} MB resident, "
            f"{run['bytes'] / 1e6:.0f} MB of them for this"
        )
    turns.record("metrics", facts=facts)


if __name__ == "__main__":
    main()
