"""What a calibration tells: numbers, curves, a table and two figures, before and after.

All is measured on the images of the fit itself, where any fit looks better than it is; a test of
the exported file says what it is worth.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from robustguide.metrics import SMALL, Answers
from robustguide.modules.fitting import Fit
from robustguide.report import figures

Series = dict[str, list[float | None]]

COLUMNS = {
    "temperature": "T",
    "nll_before": "NLL before",
    "nll_after": "after",
    "ece_before": "ECE before",
    "ece_after": "after",
    "ece_if_calibrated_upper": "if calibrated",
}
CURVES = {
    "ece_before": "before",
    "ece_after": "after",
    "ece_if_calibrated": "after, if calibrated",
    "ece_if_calibrated_upper": "the same, upper 95 %",
}


@dataclass(frozen=True)
class Outcome:
    """What a calibration did.

    Attributes:
        levels: Noise levels.
        before: The classifier with the scaling as it was built.
        after: With the fitted one.
        fit: How it was found.
        temperatures: At each level; null for a scaling that has none.
    """

    levels: tuple[float, ...]
    before: Answers
    after: Answers
    fit: Fit
    temperatures: tuple[float, ...] | None

    def metrics(self, **facts: Any) -> dict[str, dict[str, Any]]:
        """Means over the levels, each with its n and the facts that define it."""
        found: dict[str, dict[str, Any]] = {}
        for when, answers in (("before", self.before), ("after", self.after)):
            low, high = answers.integral_interval()
            about = {"n": answers.n, "small": answers.is_small, "in_sample": True, **facts}
            found[f"nll_{when}"] = {"value": plain(float(answers.mean_nll.mean())), **about}
            found[f"integral_ece_{when}"] = {
                "value": plain(float(answers.integral_ece)),
                "interval": [plain(float(low)), plain(float(high))],
                "bins": answers.num_bins,
                **about,
            }
            smooth = float(answers.smooth_ece.mean())
            found[f"integral_smooth_ece_{when}"] = {"value": plain(smooth), **about}
        return found

    def series(self) -> Series:
        """Curves over the levels."""
        mean, upper, *_ = self.after.sampling_error()
        found: dict[str, Any] = {}
        if self.temperatures is not None:
            found["temperature"] = self.temperatures
        for when, answers in (("before", self.before), ("after", self.after)):
            found[f"accuracy_{when}"] = answers.accuracy
            found[f"nll_{when}"] = answers.mean_nll
            found[f"ece_{when}"] = answers.ece
            found[f"smooth_ece_{when}"] = answers.smooth_ece
        found |= {"ece_if_calibrated": mean, "ece_if_calibrated_upper": upper}
        return {name: [plain(float(value)) for value in each] for name, each in found.items()}


def plain(value: float) -> float | None:
    """A number that JSON knows; null for one that is not finite."""
    return value if math.isfinite(value) else None


def points(levels: Sequence[float], series: Mapping[str, Sequence[float | None]]) -> Any:
    """Scalars for a logger by name."""
    return {
        f"fit/{name}/sigma_{sigma:.3g}": value
        for name, values in series.items()
        for sigma, value in zip(levels, values, strict=True)
        if value is not None
    }


def print_table(levels: Sequence[float], series: Series, n: int) -> None:
    """One row a noise level."""
    table = Table(
        title=f"Held-out images of the fit, n = {n}" + (": small for an ECE" if n < SMALL else ""),
        caption="if calibrated: 95 % of samples of so many independent rows have less",
    )
    shown = {name: heading for name, heading in COLUMNS.items() if name in series}
    for heading in ("sigma", *shown.values()):
        table.add_column(heading, justify="right")
    for row, level in enumerate(levels):
        values = [series[name][row] for name in shown]
        cells = ["" if value is None else f"{value:.3f}" for value in values]
        table.add_row(f"{level:g}", *cells)
    Console().print(table)


def draw(folder: Path, levels: Sequence[float], series: Series) -> None:
    """Writes `calibration_ece.png`, and `calibration_temperature.png` where there is one."""
    told = {heading: numbers(series[name]) for name, heading in CURVES.items()}
    figure = figures.curves(levels, told, ylabel="ECE on the images of the fit")
    figures.save(figure, folder / "calibration_ece.png")
    if "temperature" in series:
        told = {"temperature": numbers(series["temperature"])}
        figure = figures.curves(levels, told, ylabel="temperature T")
        figures.save(figure, folder / "calibration_temperature.png")


def numbers(values: Sequence[float | None]) -> list[float]:
    """NaN where there is none."""
    return [math.nan if value is None else value for value in values]
