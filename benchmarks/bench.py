"""All benchmarks in one run, and benchmarks/results.md of what they found; `make bench`.

    python benchmarks/bench.py [--only NAME ...] [--results FILE]

Each is a process of its own, with fewer turns and images than its own default, so that all of them
take under 25 minutes on two cores. A benchmark that misses what it wants does not stop the others;
the exit code is then 1. `--only` runs some of them and writes the results of all that ever ran.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import robust
import turns

HERE = Path(__file__).parent
# Words behind the script's name.
BENCHMARKS: dict[str, tuple[str, ...]] = {
    "startup": ("--turns", "2"),
    "robust": ("--turns", "2"),
    "sampling": ("--turns", "2", "--images", "4", "--steps", "4"),
    "evaluations": ("--images", "100", "--again"),
    "training": (
        *("--ways", "published", "ours, bfloat16", "--on-digits", "one step from a random point"),
        *("one step from where the last ended", "free, 4 passes a batch"),
    ),
    "scaling": ("--turns", "1"),
    "roofline": ("--repeats", "1"),
    "memory": (),
    "metrics": ("--rows", "3000", "--repeats", "1"),
    "data": ("--turns", "16"),
}
# A checkpoint in one minute, where nobody has trained the one of 300 steps on PGD.
STEPS = 100
QUICK = (
    *("--config", "configs/overlay/fashion_mnist.yaml"),
    *("--config", "configs/overlay/cifar10_classifier.yaml"),
    *("--config", "configs/fit/fashion_mnist_cifar10_robust.yaml"),
    *("--config", "configs/overlay/fgsm.yaml"),
    *(f"--trainer.max_steps={STEPS}", f"--model.scheduler.total_iters={STEPS}"),
    "--data.batch_size=64",
)


def checkpoint() -> Path:
    """Of a robust classifier, trained now where there is none."""
    if robust.CHECKPOINT.is_file():
        return robust.CHECKPOINT
    folder = turns.RECORDS / "checkpoint"
    made = folder / "classifier.safetensors"
    if not made.is_file():
        place = f"--trainer.default_root_dir={folder}"
        subprocess.run([sys.executable, "-m", "robustguide", "fit", *QUICK, place], check=True)
    return made


def section(name: str, document: dict[str, Any]) -> list[str]:
    """Markdown of one benchmark."""
    lines = [f"## {name}", ""]
    about = f"`python benchmarks/{name}.py`, {document['date']}, {document['machine']}"
    if "seconds" in document:
        about += f"; with `{shlex.join(document['words'])}`" * bool(document["words"])
        about += f", {document['seconds']:.0f} s"
    lines += [about + ".", ""]
    if document["ratios"]:
        rows = [turns.Ratio(**each).row() for each in document["ratios"]]
        lines += [turns.HEAD, *rows, ""]
    if document["text"]:
        lines += [document["text"], ""]
    if document["facts"]:
        lines += [f"* {what}: {value}" for what, value in document["facts"].items()] + [""]
    return lines


def written(path: Path) -> list[str]:
    """Writes the results of all benchmarks; names those that missed something."""
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench`. Ratios are medians over turns of two ways in one run, with the",
        "quartiles in brackets; MISSED marks what is below what is asked for.",
        "",
    ]
    missed = []
    for name in BENCHMARKS:
        record = turns.RECORDS / f"{name}.json"
        if not record.is_file():
            lines += [f"## {name}", "", "Not run.", ""]
            continue
        found = section(name, json.loads(record.read_text()))
        missed += [name] if any("MISSED" in line for line in found) else []
        lines += found
    draft = path.with_suffix(".tmp")
    draft.write_text("\n".join(lines).rstrip() + "\n")
    draft.replace(path)
    return missed


def main() -> int:
    """Reads the command line and runs."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--only", nargs="+", choices=list(BENCHMARKS), default=list(BENCHMARKS))
    arguments.add_argument("--results", type=Path, default=HERE / "results.md")
    given = arguments.parse_args()
    begun, failed = time.monotonic(), []
    needed = {"robust", "roofline"} & set(given.only)
    trained = ("--checkpoint", str(checkpoint())) if needed else ()
    for name in given.only:
        print(f"\n== {name}, after {time.monotonic() - begun:.0f} s", flush=True)
        words = (*BENCHMARKS[name], *(trained if name in needed else ()))
        start = time.time()
        code = subprocess.run([sys.executable, str(HERE / f"{name}.py"), *words]).returncode
        record = turns.RECORDS / f"{name}.json"
        if not record.is_file() or record.stat().st_mtime < start:
            failed.append(f"{name} ended with {code} and found nothing")
            continue
        document = json.loads(record.read_text())
        document |= {"seconds": time.time() - start, "words": words}
        record.write_text(json.dumps(document, indent=1) + "\n")
    missed = written(given.results)
    print(f"\n{given.results} is written, after {time.monotonic() - begun:.0f} s")
    print("\n".join([*failed, *(f"{name} missed what it wants" for name in missed)]))
    return int(bool(failed or missed))


if __name__ == "__main__":
    sys.exit(main())
