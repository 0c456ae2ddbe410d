"""Rows of numbers at every noise level, one for each (image, noise draw), gathered in one order.

Sums of floats depend on their order. These rows are kept, and sorted by (index, draw) before
anything is computed, so that no number depends on the order of batches, their size, or how many
processes shared the work.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torchmetrics import Metric


class Rows:
    """Series of numbers by noise level, with rows sorted by (index, draw); `rows[name]` is one.

    Args:
        index: Which image each row is about.
        draw: Which draw of noise.
        series: One number a level and row, by name.
    """

    def __init__(
        self,
        index: Int[Tensor, " n"],
        draw: Int[Tensor, " n"],
        series: Mapping[str, Float[Tensor, "levels n"]],
    ) -> None:
        self.index = index
        self.draw = draw
        self.series = dict(series)

    def __getitem__(self, name: str) -> Float[Tensor, "levels n"]:
        return self.series[name]

    def __len__(self) -> int:
        return len(self.index)


class GatheredRows(Metric):
    """Base of metrics that keep rows; a subclass adds them and says what to compute.

    A row takes 8 bytes a series and level, in float64 on the metric's device: 13 MB for the
    answers about 50,000 images at 8 levels. They come to the host when they are computed, not
    batch by batch, which would make the device wait. Beside a device without float64 (MPS) the
    metric stays on the CPU.

    Args:
        levels: Number of noise levels.
        names: What the series are called.

    Raises:
        ValueError: If there is no level, or a name is missing or given twice.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    keys: list[Tensor]
    values: list[Tensor]

    def __init__(self, levels: int, names: Sequence[str]) -> None:
        if levels < 1 or not names or len(set(names)) < len(names):
            raise ValueError(
                f"Rows need at least one noise level and one series, each with a name of its own; "
                f"got levels={levels} and names={list(names)}."
            )
        super().__init__()
        self.levels = levels
        self.names = tuple(names)
        self.add_state("keys", [], dist_reduce_fx="cat")
        self.add_state("values", [], dist_reduce_fx="cat")

    def add(self, index: Tensor, draw: Tensor | int, series: Mapping[str, Tensor]) -> None:
        """Keeps the rows of a batch: index (b,), draw (b,) or of all, each series (levels, b).

        Raises:
            ValueError: If the series have other names or shapes than those of this metric.
        """
        shapes = {name: tuple(values.shape) for name, values in series.items()}
        if shapes != dict.fromkeys(self.names, (self.levels, len(index))):
            raise ValueError(
                f"Got series {shapes}, expected {', '.join(self.names)} of shape (levels, b) = "
                f"{(self.levels, len(index))}."
            )
        # first the device, then the dtype: the source may not know float64
        columns = [series[name].detach().to(self.device).double() for name in self.names]
        index = index.detach().to(self.device).long()
        draw = torch.full_like(index, draw) if isinstance(draw, int) else draw.to(index)
        self.keys.append(torch.stack([index, draw], dim=1))
        self.values.append(torch.stack(columns).permute(2, 0, 1))

    def rows(self) -> Rows:
        """All rows, sorted, on the CPU.

        Raises:
            ValueError: If a pair of index and draw came twice.
        """
        self._fill()
        keys, values = (torch.cat(_listed(state)).cpu() for state in (self.keys, self.values))
        order = keys[:, 1].argsort(stable=True)
        order = order[keys[order, 0].argsort(stable=True)]
        keys, values = keys[order], values[order]
        same = (keys[1:] == keys[:-1]).all(dim=1)
        if same.any():
            index, draw = keys[1:][same][0].tolist()
            raise ValueError(
                f"Draw {draw} of image {index} came twice ({int(same.sum())} such rows); give "
                f"every image an index and each of its noise draws a number of its own."
            )
        series = dict(zip(self.names, values.permute(1, 2, 0).contiguous(), strict=True))
        return Rows(keys[:, 0], keys[:, 1], series)

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gathers over processes; one without rows joins in with empty tensors of equal shape."""
        self._fill()
        super().sync(*args, **kwargs)

    def _fill(self) -> None:
        if isinstance(self.keys, list) and not self.keys:
            self.keys = [torch.empty(0, 2, dtype=torch.long, device=self.device)]
            shape = 0, len(self.names), self.levels
            self.values = [torch.empty(shape, dtype=torch.float64, device=self.device)]


class RowsByLevel(GatheredRows):
    """Named numbers at each noise level, such as gradient norms; `compute` returns `Rows`."""

    def update(
        self,
        index: Int[Tensor, " b"],
        draw: Int[Tensor, " b"] | int,
        **series: Shaped[Tensor, "..."],
    ) -> None:
        """Adds a batch: the indices of its images, the number of the noise draw, and its series.

        Raises:
            ValueError: If the series have other names or shapes than (levels, b).
        """
        self.add(index, draw, series)

    def compute(self) -> Rows:
        """The rows of all processes, sorted by (index, draw)."""
        return self.rows()


def _listed(state: list[Tensor] | Tensor) -> list[Tensor]:
    return [state] if isinstance(state, Tensor) else state  # one tensor after a reduction
