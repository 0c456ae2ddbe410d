"""Precision, recall, density, coverage and realism, from balls around rows of features.

The ball of a row reaches to its k-th nearest other row of the same set. With balls B of m real
images x and of n samples y,

    precision  share of samples in any B(x)            (Kynkaanniemi et al., 2019, eq. 1 and 2)
    recall     share of real images in any B(y)
    density    mean over samples of the number of B(x) around them, over k
    coverage   share of real images with a sample in B(x)      (Naeem et al., 2020, eq. 3 and 4)
    realism    of a sample y: the largest radius(x) / |x - y|  (Kynkaanniemi et al., 2019, eq. 3)

Conventions differ in whether the edge belongs to a ball. It does in the evaluator of
guided-diffusion, with k = 3 and 10,000 real images; not in dgm-eval, whose k is 5. All radii are
squared. That evaluator multiplies in float16; here pairs are decided as float64 decides them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustguide.metrics.jackknife import groups_of
from robustguide.metrics.means import mean_and_replicates
from robustguide.metrics.protocol import Measure, Measured, Sampled
from robustguide.metrics.radii import device_of, radii_of, summary_for
from robustguide.metrics.reference import Reference
from robustguide.metrics.tables import Table
from robustguide.metrics.tiles import Frame, full_products, summary

SAMPLES, REAL = "samples", "reference's activations"
CLOSEST = 4  # real images of which realism takes the best, in case products mistake their order


@dataclass(frozen=True)
class Balls:
    """Which rows of two sets lie in balls of the other.

    Attributes:
        k: Radii reach to the k-th neighbour.
        around: For each sample, how many balls of real images it is in.
        covered: For each real image, whether a sample is in its ball.
        recalled: For each real image, whether it is in the ball of a sample; null if not asked.
    """

    k: int
    around: Int[Tensor, " n"]
    covered: Bool[Tensor, " m"]
    recalled: Bool[Tensor, " m"] | None

    def of_samples(self) -> dict[str, Float[Tensor, " n"]]:
        """For each sample, what precision and density are means of."""
        return {"precision": (self.around > 0).double(), "density": self.around.double() / self.k}

    def of_real(self) -> dict[str, Float[Tensor, " m"]]:
        """For each real image, what coverage and recall are means of."""
        found = {"coverage": self.covered.double()}
        return found if self.recalled is None else found | {"recall": self.recalled.double()}


def balls(
    samples: Table,
    reference: Table,
    k: int,
    *,
    inclusive: bool,
    recall: bool = True,
    device: torch.device | str | None = None,
) -> Balls:
    """Finds which rows lie in which balls.

    Args:
        samples: Features of n generated images.
        reference: Features of m real images.
        k: Radii reach to the k-th other row of the same set.
        inclusive: Whether the edge belongs to a ball.
        recall: Whether to find the balls of samples, too, which costs as much as n^2/2 pairs.
        device: Where to compute; null: where the samples' features are.

    Raises:
        ValueError: For fewer than k + 1 rows, features that are not finite, or sets that differ
            in the number of features.
    """
    if samples.dim != reference.dim:
        raise ValueError(
            f"The samples have {samples.dim} features each, the reference's activations "
            f"{reference.dim}; both must come from one layer of one network: write the reference "
            "again with `robustguide stats`."
        )
    home = device_of(samples) if device is None else torch.device(device)
    told = [summary_for(samples, k, SAMPLES), summary_for(reference, k, REAL)]
    frame = Frame(*told, device=home)
    real_radii = radii_of(reference, k, told[1], home).to(frame.device) * frame.unit
    own_radii = radii_of(samples, k, told[0], home).to(frame.device) if recall else None
    around = torch.zeros(samples.rows, dtype=torch.long, device=frame.device)
    covered = torch.zeros(reference.rows, dtype=torch.bool, device=frame.device)
    recalled = torch.zeros_like(covered) if recall else None
    with full_products(frame.device):
        for rows, y in frame.blocks(samples):
            for columns, x in frame.blocks(reference):
                tile = frame.tile(y, x)
                row, column = tile.within(real_radii[None, columns], inclusive=inclusive)
                around[rows] += row.bincount(minlength=len(y.read))
                covered[columns][column] = True
                if recalled is not None and own_radii is not None:
                    limit = own_radii[rows, None] * frame.unit
                    _, column = tile.within(limit, inclusive=inclusive)
                    recalled[columns][column] = True
    return Balls(k, around.cpu(), covered.cpu(), None if recalled is None else recalled.cpu())


def realism(
    samples: Table, reference: Table, squared_radii: Float[Tensor, " m"]
) -> Float[Tensor, " n"]:
    """Realism of each sample: above 1 inside a ball, infinite for a copy of a real image.

    Only balls below the median radius count, as in dgm-eval: the largest lie where real images are
    rare. Products in float64 find the closest balls, whose distances are then summed directly.

    Args:
        samples: Features of generated images.
        reference: Features of real images.
        squared_radii: Of the balls of the real images.

    Raises:
        ValueError: When no radius is below the median, so that no ball counts.
    """
    allowed = squared_radii < squared_radii.quantile(0.5)
    if not allowed.any():
        raise ValueError(
            f"All {len(squared_radii)} radii of the real images are at or above their median of "
            f"{float(squared_radii.median().sqrt()):g}, so no ball is small enough for realism; "
            "give more real images, or fewer copies of the same ones."
        )
    frame = Frame(summary(samples, SAMPLES), summary(reference, REAL), device=device_of(samples))
    limit = torch.where(allowed, squared_radii, 0.0).to(frame.device)
    best = torch.zeros(samples.rows, dtype=torch.float64, device=frame.device)
    with full_products(frame.device):
        for rows, y in frame.blocks(samples):
            for columns, x in frame.blocks(reference):
                tile = frame.finer(y.read, x.read)
                near = limit[columns] / tile.values.clamp(min=tile.slack)
                place = near.topk(min(CLOSEST, near.shape[1]), dim=1).indices
                row = torch.arange(len(place), device=frame.device)[:, None].expand_as(place)
                exact = tile.exact(row.flatten(), place.flatten()).reshape(place.shape)
                balls_there = limit[columns][place] * frame.unit
                ratio = torch.where(balls_there > 0, balls_there / exact, 0.0)
                best[rows] = torch.maximum(best[rows], ratio.amax(1))
    return best.sqrt().cpu()


class Neighbours(Measure):
    """Any of precision, recall, density and coverage, from one pass over the pairs.

    Replicates of precision and density leave out each group of samples and keep the balls of the
    real images; those of recall and coverage leave out each group of real images and keep the
    balls of the samples. To take a row out of a set also widens balls of that set: its effect is
    of higher order, and is not in the replicates.

    Args:
        numbers: Which ones.
        k: Radii reach to the k-th other row of the same set.
        inclusive: Whether the edge belongs to a ball.
        layer: Whose features.

    Raises:
        ValueError: For a number that is none of these.
    """

    needs = "activations"

    def __init__(
        self,
        numbers: Sequence[str] = ("precision", "recall", "density", "coverage"),
        k: int = 5,
        inclusive: bool = False,
        layer: str = "pool3",
    ) -> None:
        shown = {
            name: name.capitalize() for name in ("precision", "recall", "density", "coverage")
        }
        if unknown := [name for name in numbers if name not in shown]:
            raise ValueError(f"Got the numbers {unknown}, expected some of {list(shown)}.")
        self.titles: Mapping[str, str] = {name: shown[name] for name in numbers}
        self.lower_is_better: Mapping[str, bool] = dict.fromkeys(numbers, False)
        self.k, self.inclusive, self.layer = k, inclusive, layer

    def measure(self, sampled: Sampled, reference: Reference | None) -> dict[str, Measured]:
        """See `Measure`."""
        if reference is None or self.layer not in reference.activations:
            raise ValueError(
                f"{', '.join(self.titles.values())} compare features of single images, and the "
                f"reference holds none of layer {self.layer!r}; write one that does with "
                "`robustguide stats`."
            )
        real = reference.activations[self.layer]
        found = balls(
            sampled.layers[self.layer],
            real,
            self.k,
            inclusive=self.inclusive,
            recall="recall" in self.titles,
        )
        facts = {
            "k": self.k,
            "edge": "inside" if self.inclusive else "outside",
            "layer": self.layer,
            "n": len(found.around),
            "reference_n": real.rows,
        }
        numbers = {}
        for of, rows, groups in (
            ("samples", found.of_samples(), sampled.groups),
            ("reference", found.of_real(), groups_of(torch.arange(real.rows))),
        ):
            for name in [name for name in rows if name in self.titles]:
                value, replicates = mean_and_replicates(rows[name], groups)
                numbers[name] = Measured(value, replicates, facts | {"replicates_without": of})
        return {name: numbers[name] for name in self.titles}


class PrecisionRecall(Neighbours):
    """Precision and recall, by default as guided-diffusion's evaluator defines them.

    Args:
        k: Radii reach to the k-th other row of the same set.
        inclusive: Whether the edge belongs to a ball.
        layer: Whose features.
    """

    def __init__(self, k: int = 3, inclusive: bool = True, layer: str = "pool3") -> None:
        super().__init__(("precision", "recall"), k, inclusive, layer)


class DensityCoverage(Neighbours):
    """Density and coverage, by default as dgm-eval defines them.

    Args:
        k: Radii reach to the k-th other row of the same set.
        inclusive: Whether the edge belongs to a ball.
        layer: Whose features.
    """

    def __init__(self, k: int = 5, inclusive: bool = False, layer: str = "pool3") -> None:
        super().__init__(("density", "coverage"), k, inclusive, layer)
