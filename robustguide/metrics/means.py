"""What numbers that are means over images share: rows that are checked, and groups left out."""

from collections.abc import Iterator

from jaxtyping import Float, Int
from torch import Tensor

from robustguide.metrics.tables import BLOCK, Table


def finite_blocks(
    table: Table, what: str, size: int = BLOCK
) -> Iterator[tuple[slice, Float[Tensor, "n d"]]]:
    """Blocks of a table with their places.

    Args:
        table: Features.
        what: Whose they are, for the error.
        size: Rows of a block.

    Raises:
        ValueError: For features that are not finite.
    """
    for first in range(0, table.rows, size):
        last = min(first + size, table.rows)
        block = table.block(first, last)
        if bad := int((~block.isfinite().all(dim=1)).sum()):
            raise ValueError(
                f"{bad} of the rows {first} to {last - 1} of the {what} have features that are "
                "not finite; images or the extractor's weights are damaged: make them again."
            )
        yield slice(first, last), block


def mean_and_replicates(
    values: Float[Tensor, " n"], groups: Int[Tensor, " n"]
) -> tuple[float, tuple[float, ...]]:
    """The mean of some values, and the mean without group 0, 1, ...

    There are no replicates where a group holds all that there is.
    """
    # first the device, then the dtype: the source may not know float64
    values, groups = values.cpu().double(), groups.cpu().long()
    count = int(groups.max()) + 1
    sums = values.new_zeros(count).index_add_(0, groups, values)
    sizes = groups.bincount(minlength=count)
    left = len(values) - sizes
    value = float(sums.sum()) / len(values)
    if (left == 0).any():
        return value, ()
    return value, tuple(((sums.sum() - sums) / left).tolist())
