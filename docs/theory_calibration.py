"""Error of a classifier's gradient against its calibration, where both are known exactly.

    python docs/theory_calibration.py
    python docs/theory_calibration.py --picture docs/images/calibration_theory.png

Prints the table of docs/theory.md. Classes are Gaussians of unit variance, so the posterior is
known; classifiers are that posterior with a stated fault. Nothing is sampled: every mean is a sum
over a fine grid with the data's density as weights, in float64.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from robustguide.guidance import score
from robustguide.report import save
from robustguide.report.figures import COLOURS, DPI, GREY, MARKERS, SMALL, WIDTH

Logits = Callable[[Tensor], Tensor]
BINS = 15
FREQUENCIES = (4, 16, 64)
RIPPLE = 16  # frequency of the network with kinks
FACTORS = (0.5, 0.9, 1.1, 2.0)
SHARES = (4, 8, 16)
MEANS = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)  # in the plane
PRIORS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


class Problem(NamedTuple):
    """Points (n, d), their share of the mass (n,), and exact logits as a function of points."""

    points: Tensor
    weights: Tensor
    exact: Logits


class Errors(NamedTuple):
    """Population values: ECE, and L2 errors of p(y | x) and of grad log p(y | x) for one y."""

    ece: float
    probability: float
    gradient: float


class Row(NamedTuple):
    """A classifier of the table."""

    family: str
    classifier: str
    errors: Errors


def gaussians(means: Tensor, priors: Tensor, step: float, margin: float = 7.0) -> Problem:
    """Unit Gaussians on a grid that reaches `margin` beyond their means.

    The trapezoid rule is exact but for rounding, as everything vanishes smoothly at the ends.
    """

    def exact(x: Tensor) -> Tensor:
        return priors.log() - (x[:, None] - means).square().sum(-1) / 2

    axes = [
        torch.arange(low - margin, high + margin, step, dtype=torch.float64)
        for low, high in zip(means.amin(0).tolist(), means.amax(0).tolist(), strict=True)
    ]
    points = torch.cartesian_prod(*axes).reshape(-1, means.shape[1])
    return Problem(points, exact(points).logsumexp(-1).softmax(0), exact)


def line(step: float = 0.002) -> Problem:
    """Two classes at -1 and 1, equally frequent."""
    means = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    return gaussians(means, torch.full((2,), 0.5, dtype=torch.float64), step)


def plane(step: float = 0.1) -> Problem:
    """Three classes in the plane."""
    return gaussians(MEANS, PRIORS, step)


def interval(end: float, count: int = 20_000) -> Problem:
    """Points evenly spread over [-end, end], with logits 0 and x."""
    x = end * ((2 * torch.arange(count, dtype=torch.float64) + 1) / count - 1)
    weights = torch.full((count,), 1 / count, dtype=torch.float64)
    return Problem(x[:, None], weights, lambda x: torch.cat([torch.zeros_like(x), x], dim=1))


def rms(values: Tensor, weights: Tensor) -> float:
    """L2 norm of rows under the weights."""
    return float((weights @ values.square().sum(-1)).sqrt())


def ece(p: Tensor, exact: Tensor, weights: Tensor, bins: int = BINS) -> float:
    """Top-label ECE in equal bins (lo, hi], of the population: no row is drawn."""
    confidence, label = p.max(-1)
    residual = weights * (confidence - exact.gather(-1, label[:, None])[:, 0])
    cell = (confidence * bins).ceil().long().clamp(1, bins) - 1
    return float(residual.new_zeros(bins).index_add(0, cell, residual).abs().sum())


def gradient(logits: Logits, points: Tensor, y: int) -> Tensor:
    """Gradient of log p(y | x) at every point."""
    rows = len(points)
    label = torch.full((rows,), y)

    def of_images(images: Tensor, sigma: Tensor) -> Tensor:
        return logits(images.reshape(rows, -1))

    images = points.reshape(rows, 1, 1, -1)
    return score(of_images, images, points.new_zeros(rows), label).reshape(rows, -1)


def errors(problem: Problem, logits: Logits, y: int = 1) -> Errors:
    """How far a classifier is from the posterior."""
    points, weights, exact = problem
    p, truth = logits(points).softmax(-1), exact(points).softmax(-1)
    moved = gradient(logits, points, y) - gradient(exact, points, y)
    off = (p - truth)[:, y : y + 1]
    return Errors(ece(p, truth, weights), rms(off, weights), rms(moved, weights))


def ripple(exact: Logits, amplitude: float, frequency: float) -> Logits:
    """The posterior with `amplitude * sin(frequency * x)` on the logit of class 1."""
    return added(exact, lambda x: amplitude * (frequency * x).sin())


def kinked(exact: Logits, frequency: float, beta: float = math.inf, end: float = 8.5) -> Logits:
    """The posterior with a ripple of slopes -1 and 1 on the logit of class 1, a ReLU network.

    Its units become Softplus where beta is finite.
    """
    kinks = torch.arange(-end, end, math.pi / frequency, dtype=torch.float64)
    turns = torch.ones_like(kinks)
    turns[1::2] = -1

    def wave(x: Tensor) -> Tensor:
        offset = x[:, None] - kinks
        units = offset.relu() if math.isinf(beta) else F.softplus(offset, beta)
        return 2 * (units * turns).sum(-1) - x + kinks[0] - math.pi / (2 * frequency)

    return added(exact, wave)


def added(exact: Logits, wave: Callable[[Tensor], Tensor]) -> Logits:
    """The posterior with a function of the first coordinate on the logit of class 1."""

    def logits(x: Tensor) -> Tensor:
        known = exact(x)
        onto = torch.eye(known.shape[1], dtype=known.dtype)[1]
        return known + wave(x[:, 0])[:, None] * onto

    return logits


def sharpened(exact: Logits, factor: float) -> Logits:
    """The posterior's logits times a factor."""
    return lambda x: factor * exact(x)


def prior(priors: Sequence[float]) -> Logits:
    """Answers how frequent the classes are, whatever it sees."""
    known = torch.tensor(priors, dtype=torch.float64).log()
    return lambda x: known + 0 * x[:, :1]


def half_blind() -> Logits:
    """The posterior of the plane's classes given the first coordinate alone."""
    exact = gaussians(MEANS[:, :1], PRIORS, step=1.0).exact
    return lambda x: exact(x[:, :1])


def mixed(exact: Logits, share: float) -> Logits:
    """The posterior with a share of its mass spread over all classes."""

    def logits(x: Tensor) -> Tensor:
        p = exact(x).softmax(-1)
        return ((1 - share) * p + share / p.shape[-1]).log()

    return logits


def rows() -> list[Row]:
    """The table."""
    two, three = line(), plane()
    found = [Row("exact", "the posterior", errors(two, two.exact))]

    def add(family: str, classifier: str, problem: Problem, logits: Logits) -> None:
        found.append(Row(family, classifier, errors(problem, logits)))

    for amplitude in (0.4, 0.1, 0.025):
        add("smooth", f"{amplitude:g} sin(4x)", two, ripple(two.exact, amplitude, 4))
    for w in FREQUENCIES:
        add("ever rougher", f"sin({w}x)/{w}", two, ripple(two.exact, 1 / w, w))
    for w in FREQUENCIES:
        add("at the bound", f"sin({w}x)/{w}^2", two, ripple(two.exact, 1 / w**2, w))
    add("activations", "kinks, ReLU", two, kinked(two.exact, RIPPLE))
    for beta in (64, 16, 8):
        name = f"kinks, Softplus, beta {beta}"
        add("activations", name, two, kinked(two.exact, RIPPLE, beta))
    for factor in FACTORS:
        add("temperature", f"logits times {factor:g}", two, sharpened(two.exact, factor))
    add("knows less", "the prior everywhere", two, prior((0.5, 0.5)))
    add("knows less", "one of two coordinates", three, half_blind())
    for s in SHARES:
        wide = interval(2 * s)
        add("no lower bound", f"mixed with e^-{s}", wide, mixed(wide.exact, math.exp(-s)))
    return found


def table(found: Sequence[Row]) -> str:
    """As Markdown."""
    titles = ("family", "classifier", "ECE", "error of p", "error of the gradient")
    lines = [f"| {' | '.join(titles)} |", "| --- | --- | ---: | ---: | ---: |"]
    for family, classifier, one in found:
        # what is 0 comes out as a rounding error
        numbers = " | ".join(f"{value:.2g}" if value > 1e-12 else "0" for value in one)
        lines.append(f"| {family} | {classifier} | {numbers} |")
    return "\n".join(lines)


def picture(found: Sequence[Row]) -> Figure:
    """The error of the gradient against that of p, and against the ECE."""
    figure = Figure(figsize=(WIDTH, 3.4), dpi=DPI, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    panel(left, found, "probability", "error of p (L2)")
    panel(right, found, "ece", "ECE")
    left.set_ylabel("error of the gradient (L2)", fontsize=SMALL)
    lines, names = left.get_legend_handles_labels()
    figure.legend(lines, names, loc="outside upper center", ncols=4, fontsize=SMALL, frameon=False)
    return figure


def panel(axes: Axes, found: Sequence[Row], error: str, words: str) -> None:
    """Every family as a line; an error of 0 stands apart at the left."""
    families = list(dict.fromkeys(row.family for row in found if row.family != "exact"))
    for number, family in enumerate(families):
        mine = [row.errors for row in found if row.family == family]
        axes.plot(
            [getattr(one, error) if getattr(one, error) > 1e-12 else 0 for one in mine],
            [one.gradient for one in mine],
            color=COLOURS[number] if number < len(COLOURS) else GREY,
            marker=MARKERS[number] if number < len(MARKERS) else "X",
            linestyle="none" if family in ("temperature", "knows less") else "-",
            linewidth=1,
            markersize=5,
            clip_on=False,
            label=family,
        )
    axes.set_xscale("symlog", linthresh=1e-6)
    axes.set_yscale("log")
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 1e-6, 1e-4, 1e-2, 1])
    axes.set_xlabel(words, fontsize=SMALL)
    axes.tick_params(labelsize=SMALL)
    axes.grid(color="#DDDDDD", linewidth=0.5)


def main(args: Sequence[str] | None = None) -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--picture", help="draws the errors there, too")
    given = parser.parse_args(args)
    found = rows()
    print(table(found))
    if given.picture:
        save(picture(found), given.picture)


if __name__ == "__main__":
    main()
