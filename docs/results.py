"""Turns folders that `robustguide demo` left into the tables of docs/results.md and its picture.

    python docs/results.py runs/demo0 runs/demo1 runs/demo2
    python docs/results.py runs/demo0 runs/demo1 runs/demo2 --into docs/results.md
    python docs/results.py runs/demo --picture docs/images/demo.png

The folders hold the same demo with other seeds. A cell of the first table has a number for each
seed, in the order of the folders; one of the second the mean, least and largest over the seeds.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- results -->", "<!-- end of results -->"
METRICS = {
    "frechet/digits_features": ("Fréchet distance", ".2f"),
    "class_accuracy": ("class accuracy", ".3f"),
    "integral_ece": ("integral ECE", ".3f"),
    "denoiser_evaluations": ("denoiser evaluations", ".0f"),
    "classifier_forward": ("classifier evaluations", ".0f"),
    "seconds": ("seconds", ".0f"),
}
CURVES = {
    "accuracy": "clean accuracy",
    "robust_accuracy": "robust accuracy",
    "ece": "ECE",
}

Results = dict[str, Any]


def read(path: Path) -> Results:
    """A `results.json`.

    Raises:
        SystemExit: When it is not there.
    """
    if not path.is_file():
        raise SystemExit(f"There is no {path}; `robustguide demo --folder ...` writes it.")
    results: Results = json.loads(path.read_text())
    return results


def markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, its first column words and the others numbers."""
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def each(values: Sequence[float], form: str) -> str:
    """A number for each seed; one alone where they agree."""
    shown = [format(value, form) for value in values]
    return shown[0] if len(set(shown)) == 1 else " / ".join(shown)


def spread(values: Sequence[float]) -> str:
    """Mean, and the least and largest where they differ."""
    mean, least, largest = (
        f"{v:.2f}" for v in (sum(values) / len(values), min(values), max(values))
    )
    return mean if least == largest else f"{mean} ({least} to {largest})"


def methods(demos: Sequence[Results]) -> str:
    """A row a method."""
    rows = []
    for name in demos[0]["methods"]:
        found = [demo["methods"][name] for demo in demos]
        cells = [each([one[key] for one in found], form) for key, (_, form) in METRICS.items()]
        rows.append([name.replace("_", " "), *cells])
    return markdown(["method", *(title for title, _ in METRICS.values())], rows)


def classifiers(demos: Sequence[Results]) -> str:
    """A row a noise level."""
    names = list(demos[0]["classifiers"])
    cells: list[Callable[[int], str]] = []
    titles = ["sigma"]
    for key, title in CURVES.items():
        for name in names:
            curves = [demo["classifiers"][name][key] for demo in demos]
            titles.append(f"{title}, {name}")
            cells.append(lambda row, curves=curves: spread([curve[row] for curve in curves]))
    levels = demos[0]["classifiers"][names[0]]["sigma"]
    rows = [[f"{level:g}", *(cell(row) for cell in cells)] for row, level in enumerate(levels)]
    return markdown(titles, rows)


def provenance(demos: Sequence[Results]) -> str:
    """What was run, in a few lines."""
    runs = [run for demo in demos for run in demo["runs"].values()]
    attacks = {one["attack"] for demo in demos for one in demo["classifiers"].values()}
    images = {one["n"] for demo in demos for one in demo["methods"].values()}
    judged = {one["n"] for demo in demos for one in demo["classifiers"].values()}
    packages = {f"{name} {version}" for run in runs for name, version in run["versions"].items()}
    facts = {
        "commit": {str(run["git_commit"]) for run in runs},
        "device": {run["device"] for run in runs},
        "versions": packages,
        "generated images a method": images,
        "test images a noise level": judged,
        "attack": attacks,
    }
    lines = (f"{key}: {', '.join(map(str, sorted(found)))}" for key, found in facts.items())
    return "\n".join(f"* {line}" for line in lines)


def text(folders: Sequence[str]) -> str:
    """All tables."""
    demos = [read(Path(folder) / "results.json") for folder in folders]
    # the seed of the training, which the runs of the demo know
    seeds = [read(Path(folder) / "plain" / "results.json")["run"]["seed"] for folder in folders]
    heading = f"* seeds: {', '.join(map(str, seeds))}\n{provenance(demos)}"
    return "\n\n".join([heading, methods(demos), classifiers(demos)])


def fill(path: Path, tables: str) -> None:
    """Puts the tables between the two markers of a document.

    Raises:
        SystemExit: When the markers are not there.
    """
    document = path.read_text()
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{path} has no lines {BEGIN} and {END} to put the tables between.")
    path.write_text(f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}")


def picture(folder: str, path: str) -> None:
    """The same seeds and labels, a row a method, as in the report."""
    from robustguide.report import save, tour

    save(tour.same_seeds(Path(folder)), path)


def main(args: Sequence[str] | None = None) -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", help="folders of demos")
    parser.add_argument("--into", type=Path, help="document whose tables are replaced")
    parser.add_argument("--picture", help="draws the same-seed grid of the first folder there")
    given = parser.parse_args(args)
    if given.picture:
        picture(given.folders[0], given.picture)
        return
    tables = text(given.folders)
    if given.into:
        fill(given.into, tables)
    else:
        print(tables)


if __name__ == "__main__":
    main()
