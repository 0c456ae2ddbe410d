"""How cost grows with the work: fitted exponents, and where the line bends; with a plot.

    python benchmarks/scaling.py [--plot docs/images/scaling.png] [--turns 3]

A robust step against the steps of its attack, the batch and the side of the images; sampling
against steps, batch and the number of terms; the Frechet distance against images. What reading
costs with more shards, benchmarks/data.py tells. Of each, the seconds are the smallest of some
turns. The exponent is the slope of log seconds over log size by least squares, of the larger half
of the sizes; a line bends at the largest size that costs over a tenth more than this slope says.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import turns
from matplotlib.figure import Figure
from torch import nn

from robustguide.attacks import PGD
from robustguide.classifiers import Timed
from robustguide.denoisers import EpsDenoiser
from robustguide.guidance import ClassifierFree, ClassifierGuidance, Guidance, Scaled
from robustguide.metrics.frechet import frechet_distance
from robustguide.metrics.moments import Moments
from robustguide.nets import EncoderUNet, UNet
from robustguide.noise import ChainGrid, linear_levels
from robustguide.samplers import DDIM, SeededNoise

LEVELS = linear_levels()


class Line(NamedTuple):
    """Seconds of some sizes.

    Attributes:
        what: Grows.
        of: Costs.
        sizes: Ascending.
        seconds: Smallest of some turns.
    """

    what: str
    of: str
    sizes: Sequence[float]
    seconds: Sequence[float]

    @property
    def exponent(self) -> float:
        """Slope of the logarithms, of the larger half."""
        half = len(self.sizes) // 2
        x, y = np.log(self.sizes[half:]), np.log(self.seconds[half:])
        return float(np.polyfit(x, y, 1)[0])

    @property
    def bend(self) -> float | None:
        """Largest size that costs over a tenth more than the line through the last one says."""
        last, spent = self.sizes[-1], self.seconds[-1]
        for size, seconds in zip(self.sizes[-2::-1], self.seconds[-2::-1], strict=True):
            if seconds > 1.1 * spent * (size / last) ** self.exponent:
                return size
        return None


def classifier(side: int) -> Timed:
    """A small one."""
    torch.manual_seed(0)
    net = EncoderUNet(
        image_size=side,
        in_channels=3,
        model_channels=16,
        out_channels=10,
        num_res_blocks=1,
        attention_resolutions=[4],
        channel_mult=(1, 2, 2),
        pool="attention",
    )
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.05)
    return Timed(net, LEVELS, num_classes=10)


def robust_step(steps: int = 7, batch: int = 16, side: int = 32) -> Callable[[], None]:
    """A step of training in which no row rests, so that the work is known."""
    held, attack = classifier(side), PGD(0.5, steps=steps, early_stop=False)
    x, sigma = torch.randn(batch, 3, side, side), torch.rand(batch)
    y = torch.arange(batch) % 10

    def run() -> None:
        loss = nn.functional.cross_entropy(held(attack(held, x, sigma, y), sigma), y)
        held.zero_grad()
        loss.backward()

    return run


def sampling(steps: int = 16, batch: int = 8, terms: int = 1) -> Callable[[], None]:
    """Guided sampling at 32 px; beyond the first, terms are classifiers."""
    torch.manual_seed(0)
    net = UNet(
        image_size=32,
        in_channels=3,
        model_channels=32,
        out_channels=3,
        num_res_blocks=1,
        attention_resolutions=[4],
        channel_mult=(1, 2, 2),
        num_classes=10,
        num_null_labels=1,
    )
    denoiser = EpsDenoiser(net.eval().requires_grad_(False), LEVELS, 10, (3, 32, 32))
    guide: dict[str, Guidance] = {"free": Scaled(ClassifierFree(), scale=1.0)}
    for number in range(1, terms):
        by = ClassifierGuidance(classifier(32).requires_grad_(False))
        guide[f"classifier{number}"] = Scaled(by, scale=1.0)
    sampler = DDIM(ChainGrid(LEVELS, str(steps)), clip=1.0)

    def run() -> None:
        noise, y = SeededNoise(range(batch)), torch.arange(batch) % 10
        x = sampler.start(noise.draw((3, 32, 32)), denoiser)
        sampler(denoiser, guide, x, y, noise)

    return run


def line(
    what: str, of: str, make: Callable[[int], Callable[[], None]], sizes: Sequence[int], count: int
) -> Line:
    """Measures all sizes in turns."""
    ways = [make(size) for size in sizes]
    best = [math.inf] * len(sizes)
    for _ in range(count + 1):  # the first warms up
        for number, way in enumerate(ways):
            best[number] = min(best[number], turns.seconds(way))
    return Line(what, of, sizes, best)


def statistics(count: int) -> Callable[[], None]:
    """Moments of features and their Frechet distance."""
    features = torch.randn(count, 256, generator=torch.Generator().manual_seed(0))

    def run() -> None:
        frechet_distance(Moments.of(features), Moments.of(features + 0.1))

    return run


def plotted(lines: Sequence[Line], path: Path) -> None:
    """One panel each."""
    figure = Figure(figsize=(12, 5.5), layout="constrained")
    for axes, each in zip_longest(figure.subplots(2, 4).flat, lines):
        if each is None:
            axes.set_visible(False)
            continue
        axes.loglog(each.sizes, each.seconds, "o-", color="#336699")
        straight = [
            each.seconds[-1] * (size / each.sizes[-1]) ** each.exponent for size in each.sizes
        ]
        axes.loglog(each.sizes, straight, "--", color="#999999")
        axes.set(title=f"{each.of}\nexponent {each.exponent:.2f}", xlabel=each.what, ylabel="s")
        axes.set_xticks(each.sizes, [f"{size:g}" for size in each.sizes], rotation=45)
        axes.minorticks_off()
    figure.savefig(path, dpi=100)


def main() -> int:
    """Reads the command line, measures and tells."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--plot", type=Path, default=Path("docs/images/scaling.png"))
    arguments.add_argument("--turns", type=int, default=3)
    given = arguments.parse_args()
    count, of = given.turns, "robust step"
    lines = [
        line("steps of the attack", of, lambda n: robust_step(n), (1, 2, 4, 8, 16), count),
        line("batch", of, lambda n: robust_step(batch=n), (2, 4, 8, 16, 32, 64), count),
        line("side, px", of, lambda n: robust_step(side=n), (8, 16, 32, 64), count),
        line("steps", "sampling", lambda n: sampling(n), (4, 8, 16, 32, 64), count),
        line("batch", "sampling", lambda n: sampling(batch=n), (1, 2, 4, 8, 16, 32), count),
        line("terms", "sampling", lambda n: sampling(terms=n), (1, 2, 3, 4, 6), count),
        line("images", "Frechet distance", statistics, (1000, 4000, 16000, 64000), count),
    ]
    plotted(lines, given.plot)
    facts = {
        f"{each.of} against {each.what}": f"exponent {each.exponent:.2f}, "
        + (f"bends at {each.bend:g}" if each.bend else "no bend")
        + ": "
        + ", ".join(f"{s:g}: {t:.3g} s" for s, t in zip(each.sizes, each.seconds, strict=True))
        for each in lines
    }
    turns.record("scaling", facts=facts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
