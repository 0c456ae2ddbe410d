"""Curves of several runs over noise levels, and their reliability diagrams."""

import io
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from robustguide.metrics import Reliability
from robustguide.report import figures
from robustguide.report.card import DOTTED, UNITS, UPPER
from robustguide.report.multiples import Panel, small_multiples
from robustguide.report.numbers import distinct, title_of
from robustguide.report.page import Picture
from robustguide.report.runs import Bins, Run, labels

TITLES = {
    "accuracy": "accuracy",
    "ece": "ECE",
    "label_agreement": "agreement with the label",
}
ORDER = ("accuracy", "robust_accuracy", "ece", "label_agreement")
LINES = 8  # in a panel
BANDS = 12  # reliability diagrams in a figure
ALONG = "along sampling"


@dataclass(frozen=True)
class Line:
    """One quantity of one run by noise level.

    Attributes:
        run: Its name.
        what: Title of the quantity.
        rank: Of the quantity among the others.
        definition: Lines of one panel agree in it.
        sigma: Noise levels.
        values: NaN where nothing was measured.
        dotted: What a calibrated classifier would rarely exceed, for the ECE.
    """

    run: str
    what: str
    rank: int
    definition: Hashable
    sigma: Sequence[float]
    values: Sequence[float]
    dotted: Sequence[float] | None = None


def pictures(runs: Sequence[Run]) -> list[Picture]:
    """Small multiples for each kind of run: sampling, and each module and split."""
    kinds: dict[str, list[Line]] = {}
    for run in runs:
        for name in run.curves:
            for kind, line in lines(run, name):
                kinds.setdefault(kind, []).append(line)
    drawn = []
    for kind, found in kinds.items():
        names = list(dict.fromkeys(line.run for line in found))
        for first in range(0, len(names), LINES):
            group = set(names[first : first + LINES])
            drawn.append(multiples(kind, [line for line in found if line.run in group], runs))
    return drawn


def lines(run: Run, name: str) -> list[tuple[str, Line]]:
    """What a report shows of a curve, each with the kind of figure that it belongs to."""
    curve, found = run.curves[name], []
    for key, values in curve.series.items():
        if all(value != value for value in values):
            continue
        if key == name:  # a number of the predicted clean images
            metric = run.metrics.get(name)
            text = title_of(metric) if metric else name.replace("_", " ")
            definition: Hashable = metric.identity if metric else name
            line = Line(
                run.name, f"{text},\npredicted clean image", 9, definition, curve.sigma, values
            )
            found.append((ALONG, line))
            continue
        kind = key if key in TITLES else "robust_accuracy"
        if key not in TITLES and not key.startswith("robust_accuracy"):
            continue
        text = TITLES.get(key, "accuracy under attack")
        definition = defined(run, name, key)
        if kind == "robust_accuracy":
            text += attack_of(run, name, key)
        if name not in ("classifier", "trajectory"):
            text += f",\n{name.replace('_', ' ')}"
        dotted = curve.series.get(UPPER) if key == "ece" else None
        line = Line(run.name, text, ORDER.index(kind), definition, curve.sigma, values, dotted)
        found.append((ALONG if name == "trajectory" else f"{run.module}, {run.split}", line))
    return found


def mean_of(name: str, key: str) -> str:
    """Name of the metric that is the mean of a curve's quantity."""
    prefix = "" if name in ("classifier", "trajectory") else f"{name}_"
    return prefix + {"ece": "integral_ece", "label_agreement": "integral_ece"}.get(key, key)


def defined(run: Run, name: str, key: str) -> Hashable:
    """What decides what is measured at each level; the levels themselves may differ."""
    metric = run.metrics.get(mean_of(name, key))
    if metric is None:
        return run.split
    return metric.n, tuple(each for each in metric.definition if each[0] != "grid")


def attack_of(run: Run, name: str, key: str) -> str:
    """Beginning of the attack's description, as there is room for."""
    metric = run.metrics.get(mean_of(name, key))
    attack = dict(metric.definition).get("attack", "") if metric else ""
    first = ", ".join(attack.replace(UNITS, "").split(", ")[:2])[:40]
    return f"\n{first}" if first else ""


def multiples(kind: str, found: Sequence[Line], runs: Sequence[Run]) -> Picture:
    """A panel a quantity and definition."""
    short = labels(runs)
    groups: dict[tuple[int, str, Hashable], list[Line]] = {}
    for line in found:
        groups.setdefault((line.rank, line.what, line.definition), []).append(line)
    ordered = sorted(groups, key=lambda key: key[:2])
    titles = distinct({key: key[1] for key in ordered})
    panels = [panel(titles[key], groups[key], short) for key in ordered]
    has_dotted = any(each.dotted for each in panels)
    figure = small_multiples(panels, DOTTED if has_dotted else "")
    names = ", ".join(dict.fromkeys(line.run for line in found))
    words = "; ".join(text.replace("\n", " ") for text in titles.values())
    caption = f"{kind[:1].upper()}{kind[1:]}: {words}."
    if len(set(titles.values())) > len({key[1] for key in ordered}):
        caption += " Panels that differ in a number alone differ in n, data or protocol."
    return Picture(figure, f"{words}, against the noise level, of {names}.", caption)


def panel(text: str, found: Sequence[Line], short: Mapping[str, str]) -> Panel:
    """Of the lines that may be compared."""
    is_share = "accuracy" in text or "agreement" in text
    title = "\n".join(figures.plain_text(line) for line in text.split("\n"))
    return Panel(
        title,
        {short[line.run]: (line.sigma, line.values) for line in found},
        dotted={short[line.run]: line.dotted for line in found if line.dotted is not None},
        limits=(0, 1) if is_share else (0, None),
    )


def diagrams(runs: Sequence[Run], notes: list[str]) -> list[Picture]:
    """Reliability diagrams of each run: from its table, or as it drew them itself.

    Args:
        runs: In their order.
        notes: Gets a line for a picture that cannot be read.
    """
    found = []
    for run in runs:
        found += [table(run, name, bins) for name, bins in run.reliability.items()]
        if not run.reliability and run.metrics:
            found += own_drawings(run, notes)
    return found


def table(run: Run, name: str, bins: Bins) -> Picture:
    """Diagrams of one table, of at most so many levels."""
    levels = len(bins.sigma)
    step = torch.linspace(0, levels - 1, min(levels, BANDS)).round().long()
    chosen = Reliability(bins.reliability.sums[:, step])
    sigma = [bins.sigma[each] for each in step.tolist()]
    cut = f" {len(sigma)} of {levels} levels." if len(sigma) < levels else ""
    what = f"{run.name}, {name.replace('_', ' ')}"
    figure = figures.reliability_diagrams(chosen, sigma)
    return Picture(figure, f"Reliability diagrams of {what}.", f"{what}.{cut}")


def own_drawings(run: Run, notes: list[str]) -> list[Picture]:
    """The diagrams that a run of an older form left as pictures."""
    found = []
    for file in sorted(run.folder.glob("*reliability*.png")):
        if not is_whole(file):
            notes.append(f"{run.name}: {file.name} is no whole PNG file.")
            continue
        what = f"{run.name}, {file.stem.replace('_', ' ')}"
        found.append(
            Picture(file, f"Reliability diagrams of {what}.", f"{what}, as the run drew it.")
        )
    return found


def is_whole(file: Path) -> bool:
    """Whether a picture can be read to its end."""
    try:
        data = file.read_bytes()
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False
    return True
