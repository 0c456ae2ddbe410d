"""How much memory was needed."""

import re
import sys
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")


def peak_memory(device: torch.device) -> tuple[int | None, str]:
    """Largest memory in bytes that this process has held since it started, and what it is of.

    On a CUDA device that of its tensors there; elsewhere the resident memory of the process, with
    Python and all libraries; null where the system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), "tensors on the GPU"
    peak = resident()
    return peak, "not known on this system" if peak is None else "resident in the process"


def resident() -> int | None:
    """Largest resident memory in bytes."""
    # Linux hands the maximum of `getrusage` on from the process that started this one
    told = STATUS.is_file() and re.search(r"^VmHWM:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    if told:
        return int(told[1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
