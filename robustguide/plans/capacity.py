"""How many rows have room in memory, by trial."""

import gc
import re
from collections.abc import Callable

import torch

from robustguide.machine.memory import give_back

# What PyTorch says where it has no class for it: the CPU's allocator, C++, and cuBLAS.
NO_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|bad_alloc|out of memory|ALLOC_FAILED"
)


def largest(fits: Callable[[int], bool], at_most: int | None = None) -> int:
    """Largest number that fits where all below it do; 0 if 1 does not.

    Asks about 2 log2 of the answer times: doubles until one does not fit, and then bisects.
    """
    fitting, next_one = 0, 1
    while (at_most is None or next_one <= at_most) and fits(next_one):
        fitting, next_one = next_one, 2 * next_one
    too_large = next_one if at_most is None else min(next_one, at_most + 1)
    while too_large - fitting > 1:
        middle = (fitting + too_large) // 2
        if fits(middle):
            fitting = middle
        else:
            too_large = middle
    return fitting


def has_room(run: Callable[[int], object]) -> Callable[[int], bool]:
    """Tells whether `run` of so many rows finds memory; what it held is free afterwards.

    Errors of any other kind are handed on.
    """

    def fits(rows: int) -> bool:
        try:
            run(rows)
            return True
        except (MemoryError, RuntimeError) as error:
            if not is_of_memory(error):
                raise
            return False
        finally:
            free()

    return fits


def is_of_memory(error: Exception) -> bool:
    """Whether memory was refused."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(NO_MEMORY.search(str(error)))


def free() -> None:
    """Gives back what nobody holds any more, cycles and the cache of a GPU included."""
    gc.collect()
    give_back()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch's
        torch.cuda.empty_cache()
