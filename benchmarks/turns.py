"""Two ways of the same work in turns, so that a busy machine slows both, and how they compare.

A ratio is the median over the turns, of each turn's own ratio; beside it stand the quartiles.
Results go into a file of plain data for each benchmark, of which `benchmarks/results.md` is made.
"""

import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles

import torch

RECORDS = Path("runs/benchmarks")


@dataclass(frozen=True)
class Ratio:
    """How many times faster one way is than another.

    Attributes:
        what: Both, in words.
        seconds: Medians of the slow and of the fast way.
        ratio: Median of the turns' ratios.
        low: Lower quartile.
        high: Upper quartile.
        wanted: Least ratio that is asked for; null asks for none.
        unit: What a second is of.
    """

    what: str
    seconds: tuple[float, float]
    ratio: float
    low: float
    high: float
    wanted: float | None = None
    unit: str = "a step"

    @property
    def is_missed(self) -> bool:
        """Whether it is below what is asked for."""
        return self.wanted is not None and self.ratio < self.wanted

    def row(self) -> str:
        """For a table in Markdown."""
        slow, fast = self.seconds
        wanted = "" if self.wanted is None else f"{self.wanted:g}"
        mark = " MISSED" if self.is_missed else ""
        return (
            f"| {self.what} | {slow:.3g} s | {fast:.3g} s | **{self.ratio:.2f}** "
            f"({self.low:.2f} to {self.high:.2f}) | {wanted}{mark} |"
        )


HEAD = """| what | before | after | times faster (quartiles) | wanted |
| --- | --- | --- | --- | --- |"""


def turns(
    what: str,
    slow: Callable[[], object],
    fast: Callable[[], object],
    count: int = 7,
    *,
    warm: int = 1,
    wanted: float | None = None,
) -> Ratio:
    """Times two ways in turns, first one first, then the other first, after some that warm up."""
    for _ in range(warm):
        slow(), fast()
    pairs = []
    for turn in range(count):
        order = (slow, fast) if turn % 2 else (fast, slow)
        taken = {way: seconds(way) for way in order}
        pairs.append((taken[slow], taken[fast]))
    ratios = [one / other for one, other in pairs]
    low, _, high = quantiles(ratios, n=4)
    before, after = (median(each) for each in zip(*pairs, strict=True))
    return Ratio(what, (before, after), median(ratios), low, high, wanted)


def seconds(way: Callable[[], object]) -> float:
    """Of one call, with all that it left to the device."""
    start = time.perf_counter()
    way()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def machine() -> str:
    """In a line."""
    name = platform.processor() or platform.machine()
    told = Path("/proc/cpuinfo")
    if told.is_file():
        models = [line for line in told.read_text().splitlines() if line.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    if torch.cuda.is_available():
        name = f"{torch.cuda.get_device_name()} beside {name}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"


def record(
    name: str,
    ratios: Sequence[Ratio] = (),
    facts: Mapping[str, object] | None = None,
    text: str = "",
) -> bool:
    """Prints and keeps what a benchmark found; whether nothing was missed.

    Args:
        name: Of the benchmark.
        ratios: Pairs that it timed.
        facts: What else it found.
        text: Markdown that it has printed already.
    """
    print("\n".join([HEAD, *(each.row() for each in ratios)]) if ratios else "")
    for about, value in (facts or {}).items():
        print(f"{about}: {value}")
    RECORDS.mkdir(parents=True, exist_ok=True)
    document = {
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
        "ratios": [asdict(each) for each in ratios],
        "facts": dict(facts or {}),
        "text": text,
    }
    (RECORDS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    return not any(each.is_missed for each in ratios)
