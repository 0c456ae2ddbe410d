"""The main job on digits, from nothing to a report: what `robustguide demo` runs and shows."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file

from robustguide.checkpoints import load_classifier
from robustguide.files import whole
from robustguide.guidance import score
from robustguide.noise import perturb
from robustguide.report import sheets
from robustguide.report.page import Block, Heading, Paragraph, Picture, Table, write_page
from robustguide.report.reading import read as read_run
from robustguide.report.sections import sections

METHODS = ("unguided", "plain_guided", "robust_guided", "classifier_free")
CLASSIFIERS = ("plain", "robust")
TRAINED = ("denoiser", "plain", "robust", "judge", "features")
FRECHET = "frechet/digits_features"
SHOWN_LEVELS = (0.2, 0.5, 1.0, 2.0)
COLUMNS = {
    FRECHET: "Frechet distance",
    "class_accuracy": "class accuracy",
    "integral_ece": "integral ECE",
    "denoiser_evaluations": "denoiser evaluations",
    "classifier_forward": "classifier evaluations",
    "seconds": "seconds",
}


def read(folder: Path, run: str) -> dict[str, Any]:
    """The `results.json` of a run."""
    results: dict[str, Any] = json.loads((folder / run / "results.json").read_text())
    return results


def collect(folder: Path, seconds: dict[str, float]) -> dict[str, Any]:
    """One document of all methods and classifiers, from the runs' own; writes it, too.

    Args:
        folder: Holds a run folder for each.
        seconds: What each command took, the start of Python included.
    """
    methods = {}
    for name in METHODS:
        run = read(folder, name)
        metrics = {key: entry["value"] for key, entry in run["metrics"].items()}
        methods[name] = {
            **metrics,
            **{key: run["cost"][key] for key in run["cost"] if key != "steps"},
            "n": run["metrics"]["class_accuracy"]["n"],
            "class_accuracy_limits": run["metrics"]["class_accuracy"]["limits"],
            "trajectory": run["curves"]["trajectory"],
            "frechet_by_noise": run["curves"][FRECHET],
        }
    classifiers = {}
    for name in CLASSIFIERS:
        run = read(folder, f"{name}_test")
        classifiers[name] = {
            **run["curves"]["classifier"],
            "n": run["metrics"]["accuracy"]["n"],
            "attack": run["metrics"]["robust_accuracy"]["attack"],
        }
    tests = [*METHODS, *(f"{name}_test" for name in CLASSIFIERS)]
    runs = {name: read(folder, name)["run"] for name in [*tests, *TRAINED]}
    results = {"methods": methods, "classifiers": classifiers, "commands": seconds, "runs": runs}
    with whole(folder / "results.json") as part:
        part.write_text(json.dumps(results, indent=1))
    return results


def summary(results: dict[str, Any]) -> Table:
    """A row a method."""
    rows = [
        [name.replace("_", " "), *(method[key] for key in COLUMNS)]
        for name, method in results["methods"].items()
    ]
    n = results["methods"]["unguided"]["n"]
    caption = (
        f"{n} images a method, the same seeds and labels. Evaluations are rows given to a "
        "network, per image; reading along for the ECE is not counted. Class accuracy: an "
        "independent judge. Frechet distance: features of an independently trained digit "
        "classifier, against the training images."
    )
    formats = dict.fromkeys(list(COLUMNS.values())[:3], ".3f") | {"seconds": ".1f"}
    return Table(["method", *COLUMNS.values()], rows, caption, formats)


def same_seeds(folder: Path, count: int = 10) -> Figure:
    """The same seeds and labels, a row a method."""
    rows = {}
    for name in METHODS:
        pixels = load_file(folder / name / "samples.safetensors")["pixels"][:count]
        rows[name.replace("_", " ")] = pixels.float() / 127.5 - 1
    return sheets.grid_comparison(rows, [str(k) for k in range(count)])


def gradients(folder: Path, wanted: int = 3) -> Figure:
    """Gradients of both classifiers towards one class, at rising noise, on unguided samples."""
    pixels = load_file(folder / "classifier_free" / "samples.safetensors")["pixels"]
    images = pixels[: len(SHOWN_LEVELS)].float() / 127.5 - 1
    sigma = torch.tensor(SHOWN_LEVELS)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    x, y = perturb(images, sigma, noise), torch.full((len(images),), wanted)
    found = {}
    for name in CLASSIFIERS:
        classifier = load_classifier(str(folder / name / "classifier.safetensors"))
        found[name] = score(classifier, x, sigma, y)
    return sheets.gradient_panel(x, found, SHOWN_LEVELS)


def scales(folder: Path, names: Sequence[str]) -> Table:
    """What a sweep of guidance scales found on validation seeds."""
    keys = list(COLUMNS)[:3]
    rows = []
    for name in names:
        metrics = read(folder / "scales", name)["metrics"]
        rows.append([name, *(metrics[key]["value"] for key in keys)])
    titles = [COLUMNS[key] for key in keys]
    return Table(["method_scale", *titles], rows, formats=dict.fromkeys(titles, ".3f"))


def write_report(folder: Path, results: dict[str, Any]) -> Path:
    """One page that opens offline: the demo's own summary, and the sections of any report.

    Args:
        folder: Holds the runs; the page goes here.
        results: From `collect`.
    """
    runs = [read_run(folder / name, name) for name in results["runs"]]
    blocks: list[Block] = [Paragraph(headline(results)), summary(results)]
    for section in sections(runs):
        if section.anchor == "provenance":
            blocks += gradients_section(folder)
        blocks += section.parts()
    return write_page(folder / "report.html", "robustguide: the main job on digits", blocks)


def gradients_section(folder: Path) -> list[Block]:
    """What only a demo shows, since it knows both classifiers."""
    return [
        Heading("What the gradients look like", anchor="gradients"),
        Picture(
            gradients(folder),
            "Noisy digits at four noise levels with both classifiers' gradients towards class 3.",
            "Gradient of log p(3 | x) at rising noise, each scaled on its own.",
        ),
    ]


def headline(results: dict[str, Any]) -> str:
    """The finding in words, from the numbers."""
    found = {name: method["class_accuracy"] for name, method in results["methods"].items()}
    return (
        "A small diffusion model of 8 x 8 digits, sampled without labels and then guided by two "
        "classifiers of noisy digits: a plain one, and one trained on adversaries. An independent "
        f"judge finds the wanted class in {found['unguided']:.0%} of the unguided images, in "
        f"{found['plain_guided']:.0%} of those guided by the plain classifier and in "
        f"{found['robust_guided']:.0%} of those guided by the robust one; classifier-free "
        f"guidance, whose denoiser sees the label, reaches {found['classifier_free']:.0%}."
    )
