"""How much memory was needed."""

import ctypes
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")
PEAK = "5"  # what is written there to begin the peak anew, see proc(5)


def peak_memory(device: torch.device) -> tuple[int | None, str]:
    """Largest memory in bytes that this process has held since it started, and what it is of.

    On a CUDA device that of its tensors there; elsewhere the resident memory of the process, with
    Python and all libraries; null where the system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), "tensors on the GPU"
    peak = resident()
    return peak, "not known on this system" if peak is None else "resident in the process"


def held(device: torch.device) -> int | None:
    """Memory in bytes that this process holds now, of the kind that `peak_memory` tells."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return told("VmRSS")


def forget_peak(device: torch.device) -> None:
    """Lets the peak begin anew, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # not there, or not allowed in a container
            CLEAR.write_text(PEAK)


def give_back() -> None:
    """Hands what was freed to the system, where the C library can; it is resident until then."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):  # glibc's
        library.malloc_trim(0)


@contextmanager
def bound(limit: int | None, device: torch.device) -> Iterator[None]:
    """In a block, refuses memory that would make this process hold more than so many bytes.

    On the CPU of what is allocated there, which PyTorch then mostly fills: code that is read from
    files is not refused. On a GPU of the tensors there, until the process ends.

    Raises:
        ValueError: It holds more already, or the system does not tell what it holds.
    """
    if limit is None:
        yield
    elif device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(limit / total, 1.0), device)
        yield
    else:
        import resource

        now, allocated = held(device), told("VmData")
        if now is None or allocated is None:
            raise ValueError("This system does not tell the memory of a process.")
        if now > limit:
            raise ValueError(
                f"{now / 1e9:.2f} GB are held before the step; give a larger --memory-limit."
            )
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (allocated + limit - now, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def told(field: str) -> int | None:
    """Bytes in a line of the status of this process; null on systems without it."""
    if not STATUS.is_file():
        return None
    line = re.search(rf"^{field}:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    return int(line[1]) * 1024 if line else None


def resident() -> int | None:
    """Largest resident memory in bytes."""
    # Linux hands the maximum of `getrusage` on from the process that started this one
    if (peak := told("VmHWM")) is not None:
        return peak
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
