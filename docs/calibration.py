"""Calibrates the classifiers of a data set, measures them, samples with them; writes the tables.

  python docs/calibration.py digits
  python docs/calibration.py fashion_mnist
  python docs/calibration.py digits fashion_mnist --into docs/calibration.md --pictures docs/images

The first two run what is missing in runs/calibration and print the tables; the trained networks
that they name must be there (`make demo`, and the commands in the heads of configs/fit). The last
runs nothing where all is there, and puts tables and pictures into the page.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure

from robustguide.plans import JobDisplay, run_jobs
from robustguide.plans.ablation import Ablation
from robustguide.plans.jobs import Job
from robustguide.report import ablation, figures
from robustguide.report.multiples import Panel, small_multiples
from robustguide.report.page import Table

HOME = Path("runs/calibration")
LEVELS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 4.0)
KNOTS = (0.05, 0.2, 0.5, 1.0, 2.0, 4.0)
VIEWS = {"x_t": "AtState", "denoised": "AtDenoised"}
ROADS = {"x_t": "x_t", "denoised": "predicted clean image"}
# Where each classifier guides: one of noisy images at them, one of clean images at a clean one.
GUIDES = {"plain": "x_t", "robust": "x_t", "clean": "denoised"}


@dataclass(frozen=True)
class Study:
    """What differs between the data sets.

    Attributes:
        data: Configuration of the labelled images.
        base: Configurations that all samplings share.
        classifiers: Files by name.
        denoiser: File.
        scales: Of guidance, by classifier.
        factors: Other scales, as multiples.
        draws: Noise draws of each image in measurements.
        images: Most images of a split that are measured.
        count: Images in a block of samples.
        steps: Of the sampler.
        share: Of the measured images, that gives labels and seeds of a reverse process.
        reference: Split of the images that samples are compared with.
    """

    data: str
    base: str
    classifiers: dict[str, str]
    denoiser: str
    scales: dict[str, float]
    factors: tuple[float, ...]
    draws: int
    images: int
    count: int
    steps: int
    share: float
    reference: str


def trained(*folders: str) -> dict[str, str]:
    """Files of the plain, the robust and the clean classifier."""
    return {
        name: f"runs/{folder}/classifier.safetensors"
        for name, folder in zip(GUIDES, folders, strict=True)
    }


STUDIES = {
    "digits": Study(
        data="configs/overlay/digits.yaml",
        base="configs/overlay/digits_generation.yaml",
        classifiers=trained("demo/plain", "demo/robust", "digits_clean"),
        denoiser="runs/demo/denoiser/denoiser.safetensors",
        scales={"plain": 8.0, "robust": 6.0, "clean": 8.0},
        factors=(0.5, 1.0, 2.0),
        draws=8,
        images=2000,
        count=1000,
        steps=50,
        share=1.0,
        reference="train",
    ),
    "fashion_mnist": Study(
        data="configs/overlay/fashion_mnist.yaml",
        base="configs/test/fashion_mnist.yaml",
        classifiers=trained(*(f"fashion_mnist_{name}" for name in GUIDES)),
        denoiser="runs/fashion_mnist_denoiser/denoiser.safetensors",
        scales={"plain": 4.0, "robust": 4.0, "clean": 4.0},
        factors=(1.0,),
        draws=1,
        images=2000,
        count=200,
        steps=25,
        share=0.15,
        reference="test",
    ),
}


def spec(class_path: str, **arguments: Any) -> dict[str, Any]:
    """A class of this package, as configurations name it."""
    return {"class_path": f"robustguide.{class_path}", "init_args": arguments}


def classifier_of(study: Study, name: str, calibrated: str | None, home: Path) -> dict[str, Any]:
    """A classifier as it was trained, or as it was calibrated for a view."""
    path = study.classifiers[name]
    if calibrated is not None:
        path = str(home / "fit" / f"{name}_{calibrated}" / "classifier.safetensors")
    return spec("checkpoints.load_classifier", path=path)


def written(home: Path, kind: str, name: str, content: dict[str, Any]) -> Path:
    """A configuration of this study; its folder is the run's."""
    path = home / "configs" / kind / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    trainer = {"default_root_dir": str(home / kind / name), "enable_progress_bar": False}
    path.write_text(yaml.safe_dump(content | {"trainer": trainer | content.get("trainer", {})}))
    return path


def fits(study: Study, home: Path) -> Iterator[Job]:
    """A smooth T(log-SNR) for every classifier and view, on the validation split."""
    for name in study.classifiers:
        for view, look in VIEWS.items():
            model = spec(
                "modules.Calibration",
                classifier=classifier_of(study, name, None, home),
                scaling=spec("classifiers.SmoothTemperature", knots=list(KNOTS)),
                levels=list(LEVELS),
                draws=study.draws,
                view=spec(f"guidance.{look}"),
                denoiser=spec("checkpoints.load_denoiser", path=study.denoiser),
            )
            path = written(home, "fit", f"{name}_{view}", {"model": model})
            files = (study.data, "configs/overlay/calibrate.yaml", str(path))
            words = ("fit", *(word for file in files for word in ("--config", file)))
            words += (f"--data.eval_limit={study.images}",)
            yield Job(f"fit_{name}_{view}", words)


def cards(study: Study, home: Path) -> Iterator[Job]:
    """A report card on the test split: each classifier as it was, and as calibrated for a view."""
    for name in study.classifiers:
        for calibrated in (None, *VIEWS):
            views = VIEWS if calibrated is None else {calibrated: VIEWS[calibrated]}
            model = spec(
                "modules.ReportCard",
                classifier=classifier_of(study, name, calibrated, home),
                levels=list(LEVELS),
                draws=study.draws,
                denoiser=spec("checkpoints.load_denoiser", path=study.denoiser),
                views={view: spec(f"guidance.{look}") for view, look in views.items()},
                gradients=False,
                reverse=spec("modules.Reverse", sampler=sampler(study), share=study.share),
            )
            run = name if calibrated is None else f"{name}_{calibrated}"
            path = written(home, "card", run, {"model": model})
            limit = f"--data.eval_limit={study.images}"
            words = ("test", "--config", study.data, "--config", str(path), limit)
            needs = () if calibrated is None else (f"fit_{name}_{calibrated}",)
            yield Job(f"card_{run}", words, needs)


def guided(study: Study, home: Path) -> Ablation:
    """The same seeds unguided, and guided by each classifier before and after."""
    methods = {"unguided": written(home, "sample", "unguided", {"model": sampling(study, {})})}
    for name, view in GUIDES.items():
        for factor in study.factors:
            for calibrated in (None, view):
                term = spec(
                    "guidance.ClassifierGuidance",
                    classifier=classifier_of(study, name, calibrated, home),
                    view=spec(f"guidance.{VIEWS[view]}"),
                )
                scale = study.scales[name] * factor
                guidance = {"classifier": spec("guidance.Scaled", scale=scale, term=term)}
                method = f"{name}_{scale:g}" + ("_calibrated" if calibrated else "")
                model = sampling(study, guidance)
                methods[method] = written(home, "sample", method, {"model": model})
    changes = (
        f"model.sampler.grid.spacing={study.steps}",
        f"data.reference_split={study.reference}",
        "trainer.enable_progress_bar=false",
    )
    return Ablation(methods, (Path(study.base),), home / "sample", study.count, changes=changes)


def sampling(study: Study, guidance: dict[str, Any]) -> dict[str, Any]:
    """Guided by terms alone: the denoiser is asked with its null label."""
    denoiser = spec("checkpoints.load_denoiser", path=study.denoiser)
    made = spec("modules.Generation", denoiser=spec("denoisers.Unconditional", denoiser=denoiser))
    made["init_args"]["guidance"] = guidance
    return made


def sampler(study: Study) -> dict[str, Any]:
    """The one that the shipped configurations sample with."""
    levels = {"class_path": "robustguide.noise.linear_levels"}
    grid = spec("noise.ChainGrid", levels=levels, spacing=str(study.steps))
    return spec("samplers.Ancestral", grid=grid, clip=1.0)


def run(study: Study, home: Path, workers: int) -> None:
    """What is missing, in order."""
    jobs = [*fits(study, home), *cards(study, home)]
    done = {job.name for job in jobs if (folder_of(job, home) / "results.json").is_file()}
    jobs = [
        Job(job.name, job.args, tuple(need for need in job.needs if need not in done))
        for job in jobs
        if job.name not in done
    ]
    jobs += guided(study, home).missing()
    with JobDisplay(jobs) as show:
        run_jobs(jobs, home / "logs", workers, show)


def folder_of(job: Job, home: Path) -> Path:
    """Where a fit or a report card leaves its files."""
    kind, _, name = job.name.partition("_")
    return home / kind / name


def markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    return ablation.markdown(Table(titles, rows)).strip()


def card(home: Path, run: str) -> dict[str, Any]:
    """Cells of a report card by name."""
    cells: dict[str, Any] = json.loads((home / "card" / run / "report_card.json").read_text())[
        "cells"
    ]
    return cells


def error(cell: dict[str, Any]) -> str:
    """Integral ECE with its interval."""
    found = cell["means"]["integral_ece"]
    low, high = found["interval"]
    return f"{found['value']:.3f} ({low:.3f} to {high:.3f})"


def before_and_after(study: Study, home: Path) -> Iterator[tuple[str, str, Any, Any]]:
    """Classifier, view, and its two cards."""
    for name in study.classifiers:
        for view in VIEWS:
            yield name, view, card(home, name), card(home, f"{name}_{view}")


def errors(study: Study, home: Path) -> str:
    """A row a classifier and view."""
    rows = []
    for name, view, before, after in before_and_after(study, home):
        forward, reverse = f"forward_{view}", f"reverse_{view}"
        means = before[forward]["means"], after[forward]["means"]
        accuracy = means[0]["accuracy"]["value"]
        likelihood = " → ".join(f"{each['nll']['value']:.2f}" for each in means)
        calibrated = means[1]["integral_ece"]["sampling_error"]["mean"]
        found = [error(each[kind]) for kind in (forward, reverse) for each in (before, after)]
        cells = [name, ROADS[view], *found[:2], f"{calibrated:.3f}", *found[2:]]
        rows.append([*cells, f"{accuracy:.3f}", likelihood])
    titles = ("classifier", "looks at", "forward, before", "after", "if perfect")
    return markdown((*titles, "reverse, before", "after", "accuracy", "NLL"), rows)


def temperatures(study: Study, home: Path) -> str:
    """What was fitted."""
    rows = []
    for name in study.classifiers:
        for view in VIEWS:
            results = json.loads((home / "fit" / f"{name}_{view}" / "results.json").read_text())
            curve = results["curves"]["calibration"]["temperature"]
            rows.append([name, ROADS[view], *(f"{value:.2f}" for value in curve)])
    return markdown(("classifier", "looks at", *(f"{level:g}" for level in LEVELS)), rows)


def samples(study: Study, home: Path) -> str:
    """A row a classifier and scale: what came out before and after."""
    plan = guided(study, home)
    runs = {method: plan.run_folders(method) for method in plan.methods}
    found = ablation.collect(runs)

    def shown(method: str, key: str) -> str:
        value = next(v for name, v in found[method]["metrics"].items() if name.startswith(key))
        return f"{value['mean']:.3f} ± {value['half_width']:.3f}"

    def change(before: str, after: str, key: str) -> str:
        """Of the same seeds, so that what a block's seeds do to both falls out."""
        values = [
            next(v["values"] for name, v in found[each]["metrics"].items() if name.startswith(key))
            for each in (before, after)
        ]
        told = ablation.interval([b - a for a, b in zip(*values, strict=True)])
        return f"{told.mean:+.3f} ± {told.half_width:.3f}"

    keys = ("frechet", "class_accuracy")
    unguided = [text for key in keys for text in (shown("unguided", key), "", "")]
    rows = [["unguided", "", *unguided]]
    for name in GUIDES:
        for factor in study.factors:
            method = f"{name}_{study.scales[name] * factor:g}"
            both = method, f"{method}_calibrated"
            cells = [
                text
                for key in keys
                for text in (*(shown(each, key) for each in both), change(*both, key))
            ]
            rows.append([name, f"{study.scales[name] * factor:g}", *cells])
    parts = ("before", "after", "change")
    titles = [f"{name}, {part}" for name in ("Fréchet", "class accuracy") for part in parts]
    return markdown(("guided by", "scale", *titles), rows)


def picture(study: Study, home: Path) -> Figure:
    """ECE by noise level, before and after, a panel a classifier and view."""
    panels = []
    for name, view, before, after in before_and_after(study, home):
        cell, fitted = before[f"forward_{view}"], after[f"forward_{view}"]
        lines = {
            "before": (cell["sigma"], cell["curves"]["ece"]),
            "calibrated": (fitted["sigma"], fitted["curves"]["ece"]),
        }
        dotted = {"calibrated": fitted["curves"]["ece_if_calibrated_upper95"]}
        title = f"ECE, {name}\nat {ROADS[view]}"
        panels.append(Panel(title, lines, dotted=dotted, limits=(0, None)))
    return small_multiples(panels, "dotted: 95% of perfectly calibrated classifiers lie below", 2)


def main() -> None:
    """Runs what is missing, prints the tables or puts them into a page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("studies", nargs="+", choices=list(STUDIES))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--into", type=Path, help="page whose tables are replaced")
    parser.add_argument("--pictures", type=Path, help="folder for pictures")
    given = parser.parse_args()
    page = given.into.read_text() if given.into else ""
    for name in given.studies:
        study, home = STUDIES[name], HOME / name
        run(study, home, given.workers)
        for part in (errors, temperatures, samples):
            table = part(study, home)
            print(f"\n{name}: {part.__name__}\n\n{table}", file=sys.stdout)
            page = replaced(page, f"{name} {part.__name__}", table) if given.into else ""
        if given.pictures:
            figures.save(picture(study, home), given.pictures / f"calibration_{name}.png")
    if given.into:
        given.into.write_text(page)


def replaced(page: str, part: str, table: str) -> str:
    """The page with another table between the comments that name the part."""
    begin, end = f"<!-- {part} -->", f"<!-- end of {part} -->"
    if begin not in page or end not in page:
        raise SystemExit(f"The page has no {begin} ... {end}; put both where the table belongs.")
    before, after = page.split(begin)[0], page.split(end)[1]
    return f"{before}{begin}\n{table}\n{end}{after}"


if __name__ == "__main__":
    main()
