"""Time until the command line answers; exits with 1 where a bound is missed.

    python benchmarks/startup.py [--turns 5]

What needs no tensor answers within a second, and the first step of a training begins and ends
within ten, on a warm cache. Each is a process of its own. The best of the turns counts, since
another process can only slow one; the median stands beside it. Below them stands which packages
the import of a training takes its time for.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NoReturn

import turns
from lightning import Callback

FIT = (
    *("fit", "--config", "configs/overlay/digits.yaml"),
    *("--config", "configs/overlay/digits_classifier.yaml"),
    *("--config", "configs/fit/digits_robust.yaml"),
    *("--trainer.max_steps=1", "--trainer.callbacks+=startup.Stop"),
)
# Words after `robustguide`, and the bound in seconds.
COMMANDS: tuple[tuple[tuple[str, ...], float], ...] = (
    ((), 1.0),
    (("--help",), 1.0),
    (("cost", "--help"), 1.0),
    (("doctor", "--help"), 1.0),
    (("status", "--help"), 1.0),
    (("score", "--help"), 1.0),
    (("rank", "--help"), 1.0),
    (("cards",), 1.0),
    (FIT, 10.0),
)
ROW = re.compile(r"^import time:\s+(\d+) \|\s+\d+ \|\s+(\w+)", re.MULTILINE)


class Stop(Callback):
    """Ends the process with the first step of training."""

    def on_train_batch_end(self, *place: Any) -> NoReturn:
        """Leaves all as it is."""
        os._exit(0)


def main() -> int:
    """Measures and prints; 1 if a bound is missed."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--turns", type=int, default=5, help="of which the best counts")
    count = arguments.parse_args().turns
    facts, is_missed = dict[str, object](), False
    for words, bound in COMMANDS:
        found = [seconds(words) for _ in range(count)]
        is_late = min(found) > bound
        is_missed |= is_late
        name = " ".join(words[:2] if words[-1:] == ("--help",) else words[:1])
        facts[f"robustguide {name}".strip()] = (
            f"{min(found):.2f} s, median {median(found):.2f} s, at most {bound:g} s"
            f"{' MISSED' * is_late}"
        )
    shares = imports("import robustguide.main")
    facts["import of a training"] = ", ".join(f"{each} {share:.2f} s" for each, share in shares)
    turns.record("startup", facts=facts)
    return int(is_missed)


def seconds(words: Sequence[str]) -> float:
    """From the start of a process to its end; of a training, to that of its first step."""
    with tempfile.TemporaryDirectory() as folder:
        place = (f"--trainer.default_root_dir={folder}",) if words is FIT else ()
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "robustguide", *words, *place],
            check=True,
            capture_output=True,
            cwd=Path(__file__).parents[1],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        )
        return time.perf_counter() - start


def imports(code: str) -> list[tuple[str, float]]:
    """Seconds that the modules of each package take of an import, without what they import."""
    command = [sys.executable, "-X", "importtime", "-c", code]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    total = Counter[str]()
    for microseconds, package in ROW.findall(said):
        total[package] += int(microseconds) / 1e6
    return total.most_common(10)


if __name__ == "__main__":
    raise SystemExit(main())
