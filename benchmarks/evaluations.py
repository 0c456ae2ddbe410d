"""Frechet distance against evaluations of the denoiser: fast solvers beside 250 ancestral steps.

    python benchmarks/evaluations.py [--images 1000] [--jobs 2] [--again]

Samples Fashion-MNIST by `robustguide test`, the same seeds and classes with each sampler, guided
without a classifier within an interval of noise. The denoiser and the network of the features ship
with the package. A solver is as good as the 250 steps where its distance lies within their 95%
interval over images, or below it. Finished cells are kept and not run again, but with --again.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import turns
import yaml

from robustguide.cards import card, needed

BASE = "configs/test/fashion_mnist.yaml"
GUIDED = ("--config", "configs/overlay/interval.yaml")
FEATURES = str(needed(card("fashion-mnist-features")))
DENOISER = {"init_args": {"path": None, "card": "fashion-mnist-denoiser"}}
REFERENCE = "250 ancestral steps"
REAL = "reference.safetensors"  # statistics of the real images
FEWER = 6.0  # times fewer evaluations at equal quality


def solver(name: str, grid: dict[str, Any], **arguments: Any) -> dict[str, Any]:
    """A sampler as a configuration says it."""
    return {
        "class_path": f"robustguide.samplers.{name}",
        "init_args": {"grid": grid, **arguments},
    }


def chain(steps: int) -> dict[str, Any]:
    """Steps spread over the chain."""
    levels = {"class_path": "robustguide.noise.linear_levels"}
    told = {"levels": levels, "spacing": str(steps)}
    return {"class_path": "robustguide.noise.ChainGrid", "init_args": told}


def rho(steps: int) -> dict[str, Any]:
    """EDM's levels."""
    told = {"steps": steps, "sigma_min": 0.01, "sigma_max": 80.0, "rho": 7.0}
    return {"class_path": "robustguide.noise.RhoGrid", "init_args": told}


SAMPLERS: dict[str, dict[str, Any]] = {
    REFERENCE: solver("Ancestral", chain(250), clip=1.0),
    "50 ancestral steps": solver("Ancestral", chain(50), clip=1.0),
    "30 ancestral steps": solver("Ancestral", chain(30), clip=1.0),
    "18 steps of Heun": solver("Heun", rho(18), clip=1.0),
    "18 steps of Heun with churn": solver("Heun", rho(18), clip=1.0, churn=8.0),
    "20 steps of DPM-Solver++(2M)": solver("DPMSolver2M", rho(20), clip=1.0),
}


class Cell(NamedTuple):
    """What was found of a sampler."""

    distance: float
    low: float
    high: float
    evaluations: float

    @classmethod
    def read(cls, folder: Path) -> "Cell":
        """Of the results of a run."""
        results = json.loads((folder / "results.json").read_text())
        found = results["metrics"]["frechet/fashion_mnist_features"]
        count = results["cost"]["denoiser_evaluations"]
        return cls(found["value"], *found["interval"], count)

    def __str__(self) -> str:
        return (
            f"{self.distance:.2f} ({self.low:.2f} to {self.high:.2f}), "
            f"{self.evaluations:.0f} evaluations"
        )


def place_of(name: str, images: int, folder: Path) -> Path:
    """The run folder of a cell."""
    return folder / f"{name}, {images}".replace(" ", "_")


def sampled(name: str, images: int, folder: Path, *, is_apart: bool = False) -> Cell:
    """A cell, from its file if it is there; apart from others that run, on one thread."""
    place = place_of(name, images, folder)
    if not (place / "results.json").is_file():
        place.mkdir(parents=True, exist_ok=True)
        config = place / "sampler.yaml"
        callbacks = [
            {
                "class_path": "robustguide.callbacks.Quality",
                "init_args": {
                    "protocol": "fashion_mnist_features",
                    "weights": FEATURES,
                    "along": False,
                    "reference": str(folder / REAL),  # the first cell makes it
                },
            },
            {"class_path": "robustguide.callbacks.SampleGrid"},
        ]
        told = {
            "model": {
                "init_args": {"denoiser": DENOISER, "sampler": SAMPLERS[name], "observer": None}
            },
            "data": {"init_args": {"count": images}},
            "trainer": {"default_root_dir": str(place), "callbacks": callbacks},
        }
        config.write_text(yaml.safe_dump(told))
        words = ["--config", BASE, "--config", str(config), *GUIDED]
        run = [sys.executable, "-m", "robustguide", "test", *words]
        apart = os.environ | ({"OMP_NUM_THREADS": "1"} if is_apart else {})
        subprocess.run(run, check=True, stdout=subprocess.DEVNULL, env=apart)
    return Cell.read(place)


def main() -> int:
    """Reads the command line, samples and tells."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--images", type=int, default=1000)
    arguments.add_argument("--folder", type=Path, default=turns.RECORDS / "evaluations")
    arguments.add_argument("--jobs", type=int, default=os.cpu_count(), help="samplers at once")
    arguments.add_argument("--again", action="store_true", help="delete cells of before")
    given = arguments.parse_args()
    facts, is_reached = dict[str, object](), False
    place, is_apart = given.folder, given.jobs > 1
    if given.again:
        for name in SAMPLERS:
            shutil.rmtree(place_of(name, given.images, place), ignore_errors=True)
        (place / REAL).unlink(missing_ok=True)
    with ThreadPoolExecutor(given.jobs) as pool:
        begun = {
            name: pool.submit(sampled, name, given.images, place, is_apart=is_apart)
            for name in SAMPLERS
        }
        cells = {name: each.result() for name, each in begun.items()}
    reference = cells.pop(REFERENCE)
    facts[f"{REFERENCE}, guided"] = str(reference)
    for name, cell in cells.items():
        fewer = reference.evaluations / cell.evaluations
        is_equal = cell.distance <= reference.high
        facts[f"{name}, guided"] = (
            f"{cell}: {fewer:.1f} times fewer, {'equal or better' if is_equal else 'worse'}"
        )
        is_reached |= is_equal and fewer >= FEWER
        print(f"{name}: {facts[f'{name}, guided']}", flush=True)
    facts["images"] = given.images
    facts[f"at least {FEWER:g} times fewer at equal quality"] = "yes" if is_reached else "MISSED"
    turns.record("evaluations", facts=facts)
    return 0 if is_reached else 1


if __name__ == "__main__":
    sys.exit(main())
