"""Several methods on the same blocks of seeds: means over the blocks, with their intervals.

Of n blocks with mean m and sample standard deviation s,

    m +- t s / sqrt(n)

holds the expected value of a block with 95% probability where blocks are normal, t being the
97.5% quantile of Student's distribution with n - 1 degrees of freedom.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from safetensors.torch import load_file

from robustguide.files import whole
from robustguide.report import figures, sheets
from robustguide.report.page import Table, shown

LEVEL = 0.95
FIRST_METRICS = ("class_accuracy", "frechet", "integral_ece")
TITLES = {"integral_ece": "integral ECE"}
COSTS = {
    "denoiser_evaluations": "denoiser",
    "denoiser_backward": "denoiser backward",
    "reference_evaluations": "reference",
    "classifier_forward": "classifier forward",
    "classifier_backward": "classifier backward",
    "decoder_calls": "decoder",
    "seconds_per_image": "seconds per image",
}
FORMATS = {"metrics": ".3f", "cost": ".3g"}
CAPTIONS = {
    "metrics": "Mean over {blocks} blocks of {count} images each, the same seeds and labels for "
    "all methods, ± half of a 95% interval by Student's t over the blocks.",
    "cost": "Rows given to each network, per image; a column that is 0 for all methods is left "
    "out.",
}


@dataclass(frozen=True)
class Interval:
    """A mean over blocks; null where a block has no such number.

    Attributes:
        mean: Of the blocks.
        half_width: The interval is the mean plus or minus this.
        values: Of each block.
    """

    mean: float | None
    half_width: float | None
    values: tuple[float | None, ...]


def interval(values: Sequence[float | None], level: float = LEVEL) -> Interval:
    """Mean and interval by Student's t.

    Raises:
        ValueError: For fewer than two values.
    """
    if len(values) < 2:
        raise ValueError(f"An interval needs two values or more, got {len(values)}.")
    found = [value for value in values if value is not None]
    if len(found) < len(values):
        return Interval(None, None, tuple(values))
    half_width = student_t(len(found) - 1, level) * stdev(found) / math.sqrt(len(found))
    return Interval(fmean(found), half_width, tuple(values))


def student_t(freedom: int, level: float = LEVEL) -> float:
    """The t of which a share `level` of Student's distribution lies between -t and t.

    Args:
        freedom: Degrees of freedom, 1 or more.
        level: In (0, 1).
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        below = share(middle, freedom) < level
        low, high = (middle, high) if below else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def share(angle: float, freedom: int) -> float:
    """Probability of |t| < sqrt(freedom) tan(angle): Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    odd = freedom % 2
    total, part = 0.0, 1.0
    for power in range((freedom - odd) // 2):
        total += part * math.cos(angle) ** (2 * power)
        part *= (2 * power + 1 + odd) / (2 * power + 2 + odd)
    if not odd:
        return math.sin(angle) * total
    return 2 / math.pi * (angle + math.sin(angle) * math.cos(angle) * total)


def collect(runs: Mapping[str, Sequence[Path]]) -> dict[str, Any]:
    """What the blocks of each method measured and took.

    Args:
        runs: The run folders of each method's blocks, as many for each.

    Returns:
        By method: `metrics` and `cost`, each an `Interval` by name, and `runs`.
    """
    return {method: measured(folders) for method, folders in runs.items()}


def measured(folders: Sequence[Path]) -> dict[str, Any]:
    """Of one method."""
    blocks = [json.loads((folder / "results.json").read_text()) for folder in folders]
    metrics = [{name: one["value"] for name, one in block["metrics"].items()} for block in blocks]
    return {
        "metrics": over_blocks(metrics),
        "cost": over_blocks([block["cost"] for block in blocks]),
        "runs": [folder.as_posix() for folder in folders],
    }


def over_blocks(blocks: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Intervals of whatever numbers the blocks have."""
    names = dict.fromkeys(
        name for block in blocks for name, value in block.items() if isinstance(value, int | float)
    )
    return {
        name: asdict(interval([number(block.get(name)) for block in blocks])) for name in names
    }


def number(value: Any) -> float | None:
    """A number, or null: JSON knows no infinity, so that results have words for it."""
    return float(value) if isinstance(value, int | float) else None


def metrics_of(methods: Mapping[str, Any]) -> dict[str, str]:
    """Titles of the metrics that a method has, by name; the usual ones first."""
    names = dict.fromkeys(name for method in methods.values() for name in method["metrics"])
    usual = len(FIRST_METRICS)
    places = {name: place for place, name in enumerate(FIRST_METRICS)}
    ordered = sorted(names, key=lambda name: places.get(name.partition("/")[0], usual))
    return {name: TITLES.get(name) or title(name) for name in ordered}


def title(name: str) -> str:
    """`frechet/digits_features` as `Frechet distance (digits features)`, others in words."""
    kind, _, features = name.replace("_", " ").partition("/")
    words = "Frechet distance" if kind == "frechet" else kind
    return f"{words} ({features})" if features else words


def costs_of(methods: Mapping[str, Any]) -> dict[str, str]:
    """Titles of the costs that a method had, by name."""

    def is_spent(name: str) -> bool:
        return any(method["cost"].get(name, {}).get("mean") for method in methods.values())

    return {name: words for name, words in COSTS.items() if is_spent(name)}


def table(results: Mapping[str, Any], parts: Sequence[str] = ("metrics", "cost")) -> Table:
    """A row a method.

    Args:
        results: `methods`, from `collect`, `blocks` and `count`.
        parts: Which columns; all are too wide for most terminals.
    """
    methods = results["methods"]
    columns = {
        (part, name): words
        for part, titles in (("metrics", metrics_of(methods)), ("cost", costs_of(methods)))
        if part in parts
        for name, words in titles.items()
    }
    rows = []
    for method, found in methods.items():
        cells = (cell(found[part].get(name), part) for part, name in columns)
        rows.append([method.replace("_", " "), *cells])
    caption = " ".join(CAPTIONS[part] for part in parts)
    return Table(["method", *columns.values()], rows, caption.format(**results))


def cell(found: Mapping[str, Any] | None, part: str) -> str:
    """`0.934 ± 0.012`; a cost that is the same in all blocks stands alone."""
    form = FORMATS[part]
    if found is None or found["mean"] is None:
        return shown(None)
    mean, half_width = shown(found["mean"], form), found["half_width"]
    alone = part == "cost" and not half_width
    return mean if alone else f"{mean} ± {shown(half_width, form)}"


def markdown(found: Table) -> str:
    """A table as Markdown, its caption below."""
    rows = [found.columns, ["---"] + ["---:"] * (len(found.columns) - 1), *found.rows]
    cells = ([shown(value).replace("|", "\\|") for value in row] for row in rows)
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([*lines, "", found.caption, ""])


def dots(results: Mapping[str, Any]) -> Figure:
    """Every metric of every method as a dot with its interval, a panel a metric."""
    methods = results["methods"]
    metrics = metrics_of(methods)
    height = 1.0 + 0.24 * len(methods)
    figure = Figure(figsize=(figures.WIDTH, height), dpi=figures.DPI, layout="constrained")
    panels = figure.subplots(1, max(len(metrics), 1), sharey=True, squeeze=False)[0]
    for axes, (key, words) in zip(panels, metrics.items(), strict=False):
        panel(axes, [method["metrics"].get(key) for method in methods.values()], words)
    panels[0].set_ylim(len(methods) - 0.5, -0.5)
    names = [name.replace("_", " ") for name in methods]
    panels[0].set_yticks(range(len(methods)), names, fontsize=figures.SMALL)
    return figure


def panel(axes: Axes, found: Sequence[Mapping[str, Any] | None], words: str) -> None:
    """One metric, the methods from top to bottom."""
    for row, one in enumerate(found):
        if one is not None and one["mean"] is not None:
            axes.errorbar(
                one["mean"],
                row,
                xerr=one["half_width"],
                color=figures.COLOURS[0],
                marker="o",
                markersize=4,
                capsize=2.5,
                linewidth=1,
            )
    axes.set_xlabel(words.replace(" (", "\n("), fontsize=figures.TEXT)
    axes.tick_params(labelsize=figures.SMALL, length=2)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def samples(runs: Mapping[str, Sequence[Path]], count: int = 10) -> Figure | None:
    """The first images of each method's first block; null where runs kept none."""
    files = {name: folders[0] / "samples.safetensors" for name, folders in runs.items()}
    if not all(file.is_file() for file in files.values()):
        return None
    pixels = {name: load_file(file)["pixels"][:count] for name, file in files.items()}
    return sheets.grid_comparison({name: rows / 127.5 - 1 for name, rows in pixels.items()})


def write(folder: Path, results: Mapping[str, Any], runs: Mapping[str, Sequence[Path]]) -> None:
    """Writes `ablation.json`, `ablation.md`, `ablation.png` and, of kept images, `samples.png`."""
    with whole(folder / "ablation.json") as part:
        part.write_text(json.dumps(results, indent=1, allow_nan=False))
    with whole(folder / "ablation.md") as part:
        part.write_text(markdown(table(results)))
    figures.save(dots(results), folder / "ablation.png")
    images = samples(runs)
    if images is not None:
        figures.save(images, folder / "samples.png")
