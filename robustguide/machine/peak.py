"""How fast a device multiplies matrices: what the speed of networks is compared with."""

import math
import time
from functools import cache

import torch
from torch import Tensor

from robustguide.machine.laps import clock

SIZES = (256, 512, 1024, 2048)  # of the CPU
LARGE = (1024, 2048, 4096, 8192)  # of other devices
SECONDS = 0.5  # of all products together
REPEATS = 3


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float | None:
    """Fastest of several products of square matrices, FLOP/s; a process measures it once.

    With the threads that this process has, and in float32 with the TF32 that it allows. Null where
    the device does not multiply such numbers.
    """
    set_now = torch.get_num_threads(), torch.get_float32_matmul_precision()
    return _measured(device, dtype, *set_now)


@cache
def _measured(
    device: torch.device, dtype: torch.dtype, threads: int, precision: str
) -> float | None:
    """Measured once for each setting of the process that the answer depends on."""
    best, end = 0.0, time.perf_counter() + SECONDS
    for size in SIZES if device.type == "cpu" else LARGE:
        generator = torch.Generator(device).manual_seed(0)
        least = math.inf
        try:
            x = torch.rand(size, size, generator=generator, device=device).to(dtype)
            for _ in range(REPEATS):
                least = min(least, product_seconds(x))
                if time.perf_counter() + least > end:
                    break
        except RuntimeError:  # no such numbers there, no memory, or torch's strict modes
            break
        best = max(best, 2 * size**3 / least)
        if time.perf_counter() + 8 * least > end:  # of twice the size
            break
    return best or None


def product_seconds(x: Tensor) -> float:
    """Time of one product."""
    start = clock(x.device)
    x @ x
    return clock(x.device) - start
