"""The report card of a classifier: one table, one figure, one document, of what was measured."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table

from robustguide.metrics import SMALL, Reliability
from robustguide.report.multiples import Panel, small_multiples
from robustguide.report.page import MISSING

Curve = Sequence[float | None]

FORMAT = "robustguide.report_card.1"
UNITS = " in x_t units on the [-1,1] scale"
UPPER = (
    "ece_if_calibrated_upper95"  # curve of what all but 5% of calibrated classifiers stay below
)
SHOWN, STATE = "what is shown, as at level 0", "x at its level"  # what attacks move
GUESSING = "grey: guessing"
DOTTED = "dotted: 95% of perfectly calibrated classifiers lie below"


class Quantity(NamedTuple):
    """Something that is measured at each noise level.

    Attributes:
        title: For figures.
        head: For tables, in words of at most six letters.
        definition: What exactly it is.
        limits: Of its axis.
        is_logarithmic: Whether its axis is.
    """

    title: str
    head: str
    definition: str
    limits: tuple[float | None, float | None] = (0, None)
    is_logarithmic: bool = False


QUANTITIES = {
    "accuracy": Quantity(
        "accuracy", "acc.", "share of rows whose most probable class is the label", (0, 1)
    ),
    "robust_accuracy": Quantity(
        "accuracy under attack", "under attack", "accuracy on rows that the attack moved", (0, 1)
    ),
    "nll": Quantity(
        "negative log-likelihood", "NLL", "mean of -log p(label), in nats"
    ),
    "brier": Quantity(
        "Brier score", "Brier", "mean of the sum over classes of (p - 1[label])^2, from 0 to 2"
    ),
    "ece": Quantity(
        "ECE",
        "ECE",
        "mean of |accuracy - confidence| over equal bins (lo, hi] of the largest probability, "
        "weighted by their rows; Guo et al. (2017), eq. 3",
    ),
    "adaptive_ece": Quantity(
        "adaptive ECE", "adapt. ECE", "as ece, in bins of equally many rows"
    ),
    "classwise_ece": Quantity(
        "class-wise ECE", "class ECE", "mean over classes of the ECE of each one's probability"
    ),
    "smooth_ece": Quantity(
        "smooth ECE",
        "smooth ECE",
        "as ece, with a kernel in place of bins; Blasiok and Nakkiran (2023)",
    ),
    "gradient_norm": Quantity(
        "gradient norm at x_t",
        "grad. norm",
        "mean of sqrt(1 + sigma^2) |g|, g the gradient of log p(label) read as a score at x; in "
        "nats a unit of x_t",
        (None, None),
        is_logarithmic=True,
    ),
    "cosine": Quantity(
        "cosine with D(x, y) - D(x)",
        "cosine",
        "mean cosine of g with the classifier-free direction of the denoiser, 0 where g is 0",
        (None, None),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """What was measured of one process through one view.

    Attributes:
        name: Such as "forward_x_t".
        sigmas: Noise levels.
        curves: Values at these levels by key; a quantity, or its limits.
        means: Means over the levels by key, each with what defines it.
        facts: What else defines the numbers.
        reliability: Its table, for diagrams.
        threats: The attacks in words.
        num_classes: Of the classifier.
    """

    name: str
    sigmas: Sequence[float]
    curves: Mapping[str, Curve]
    means: Mapping[str, Mapping[str, Any]]
    facts: Mapping[str, Any]
    reliability: Reliability
    num_classes: int
    threats: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The name for people, such as "forward x_t"."""
        return self.name.replace("_", " ", 1)

    @property
    def quantities(self) -> dict[str, Quantity]:
        """Those that were measured, in the order of tables and figures."""
        attacks = {robust_key(i): _attacked(threat) for i, threat in enumerate(self.threats)}
        wanted: dict[str, Quantity] = {}
        for key, quantity in QUANTITIES.items():
            wanted |= attacks if key == "robust_accuracy" else {key: quantity}
        return {
            key: quantity for key, quantity in wanted.items() if _is_known(self.curves.get(key))
        }

    @property
    def chance(self) -> dict[str, float]:
        """What guessing gives."""
        k = self.num_classes
        return {"accuracy": 1 / k, "nll": math.log(k), "brier": 1 - 1 / k, "cosine": 0.0}

    def document(self) -> dict[str, Any]:
        """All of it as plain data."""
        threats = {robust_key(i): threat for i, threat in enumerate(self.threats)}
        return {
            **self.facts,
            "threats": threats,
            "sigma": list(self.sigmas),
            "means": {key: dict(mean) for key, mean in self.means.items()},
            "curves": {key: list(curve) for key, curve in self.curves.items()},
        }


def document(entries: Sequence[Entry], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The card as plain data.

    Args:
        entries: Its cells.
        facts: What belongs to none of them.
    """
    definitions = {key: quantity.definition for key, quantity in QUANTITIES.items()}
    return {
        "format": FORMAT,
        **facts,
        "definitions": definitions,
        "cells": {entry.name: entry.document() for entry in entries},
    }


def table(entry: Entry) -> Table:
    """A row a noise level and one of their means, for a terminal of 80 letters."""
    n, images = entry.facts.get("n"), entry.facts.get("images")
    found = Table(
        caption=caption(entry),
        caption_justify="left",
        title=f"{entry.title}: {n} rows of {images} images",
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=0,
    )
    heads = [quantity.head for quantity in entry.quantities.values()]
    for head in ("sigma", *heads):
        found.add_column(head, justify="right", min_width=5, overflow="fold")
    for row, sigma in enumerate(entry.sigmas):
        values = [entry.curves[key][row] for key in entry.quantities]
        found.add_row(f"{sigma:.3g}", *map(short, values))
    found.add_section()
    means = [entry.means[mean_key(key)]["value"] for key in entry.quantities]
    found.add_row("mean", *map(short, means))
    return found


def caption(entry: Entry) -> str:
    """The integral calibration error with what belongs to it, and the attacks."""
    error, n = entry.means["integral_ece"], entry.facts["n"]
    lines = [f"Integral ECE {short(error['value'])}, the mean over these levels, {n} rows each, "]
    lines[0] += f"{error['bins']} bins"
    if "interval" in error:
        low, high = map(short, error["interval"])
        chance = error["sampling_error"]
        lines[0] += (
            f"; 95% interval {low} to {high}. A perfectly calibrated classifier would show "
            f"{short(chance['mean'])}, and less than {short(chance['upper95'])} in 95% of tests"
        )
    if error["biased"]:
        lines[0] += f". Fewer than {SMALL} rows: the ECE is too large"
    if entry.facts["labelled"]:
        lines.append("The denoiser was told the label.")
    lines += [f"Under attack: {threat}." for threat in entry.threats]
    if entry.threats and entry.facts["attacks_move"] == SHOWN:
        lines.append("It moves what the classifier is shown, as at noise level 0.")
    return "\n".join([f"{lines[0]}.", *lines[1:]])


def multiples(entries: Sequence[Entry]) -> Figure:
    """A panel a quantity, a line a cell."""
    quantities = {key: q for entry in entries for key, q in entry.quantities.items()}
    panels = [_panel(key, quantity, entries) for key, quantity in quantities.items()]
    has_dotted = any(panel.dotted for panel in panels)
    return small_multiples(panels, "; ".join([GUESSING, *[DOTTED] * has_dotted]))


def robust_key(number: int) -> str:
    """Key of the accuracy under the attack of a number, from 0."""
    return "robust_accuracy" + (f"_{number + 1}" if number else "")


def mean_key(key: str) -> str:
    """Name of the mean over the levels; that of the ECE is the integral calibration error."""
    return f"integral_{key}" if key.endswith("ece") else key


def short(value: float | None) -> str:
    """A number of at most six letters; a dash for none."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.3g}"


def _panel(key: str, quantity: Quantity, entries: Sequence[Entry]) -> Panel:
    having = [entry for entry in entries if key in entry.quantities]
    dotted = [entry for entry in having if key == "ece" and UPPER in entry.curves]
    chances = {entry.chance.get(key) for entry in having}
    return Panel(
        quantity.title,
        {entry.title: (entry.sigmas, numbers(entry.curves[key])) for entry in having},
        level=chances.pop() if len(chances) == 1 else None,
        dotted={entry.title: numbers(entry.curves[UPPER]) for entry in dotted},
        limits=quantity.limits,
        is_logarithmic=quantity.is_logarithmic,
    )


def numbers(curve: Curve) -> list[float]:
    """NaN where nothing was measured."""
    return [math.nan if value is None else value for value in curve]


def _is_known(curve: Curve | None) -> bool:
    return curve is not None and not all(map(math.isnan, numbers(curve)))


def _attacked(threat: str) -> Quantity:
    """The accuracy under an attack, of which a title has only room for the beginning."""
    first = ", ".join(threat.replace(UNITS, "").split(", ")[:2])[:40]
    title = f"accuracy under attack\n{first}"
    return QUANTITIES["robust_accuracy"]._replace(title=title)
