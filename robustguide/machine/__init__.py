"""What this machine has, and what is wrong with it."""

import warnings
from collections.abc import Sequence

from robustguide.machine.finding import Finding
from robustguide.machine.packages import versions
from robustguide.machine.places import folders, slurm
from robustguide.machine.processors import devices, threads
from robustguide.machine.stock import checkpoints, data_sets

__all__ = ["Finding", "examine"]


def examine(
    runs: str = "runs", data: Sequence[str] = (), weights: Sequence[str] = ()
) -> list[Finding]:
    """Looks at everything.

    Args:
        runs: Folder of the runs.
        data: Folders that hold data sets.
        weights: Folders that hold checkpoints.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a driver that is too old is told as a finding
        return [
            *versions(),
            *devices(),
            *threads(),
            *data_sets(data),
            *checkpoints(weights),
            *folders(runs),
            *slurm(),
        ]
