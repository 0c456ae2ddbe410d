"""Where networks can run, and with how many threads."""

import os
import platform
from collections.abc import Iterator
from pathlib import Path

from robustguide.machine.finding import Finding

GIGA = 1e9
PAYS = 1.5  # times as fast, from which on casts of a network cost less than they save


def devices() -> Iterator[Finding]:
    """Where networks can run; each is tried with a small gradient."""
    try:
        import torch
    except Exception:
        return  # told among the versions
    yield tried("cpu", platform.machine())
    yield products("cpu")
    yield norms()
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if facts.major >= 8 else "no bf16"
        yield tried(f"cuda:{index}", f"{facts.name}, {facts.total_memory / GIGA:.0f} GB, {bf16}")
        yield products(f"cuda:{index}")
    if not torch.cuda.is_available() and Path("/proc/driver/nvidia/version").is_file():
        built = f"torch was built for CUDA {torch.version.cuda}" if torch.version.cuda else (
            "torch was built without CUDA"
        )  # fmt: skip
        repair = "install the build of torch that goes with the driver, see pytorch.org"
        yield Finding("devices", "cuda", f"there is a driver, but {built}", repair, False)
    if torch.backends.mps.is_available():
        yield tried("mps", "Apple GPU")
        yield products("mps")


def products(device: str) -> Finding:
    """How fast a device multiplies matrices, in float32 and bfloat16."""
    import torch

    from robustguide.machine.peak import matmul_peak

    place = torch.device(device)
    single, half = (matmul_peak(place, dtype) for dtype in (torch.float32, torch.bfloat16))
    value = ", ".join(
        f"{name} {peak / GIGA:,.0f} GFLOP/s" if peak else f"no {name}"
        for name, peak in (("float32", single), ("bfloat16", half))
    )
    if device == "cpu" and single and half and half >= PAYS * single:
        value += "; --trainer.precision=bf16-mixed pays for large networks"
    return Finding("devices", f"{device} products", value)


def norms() -> Finding:
    """Whether the CPU has the compiled norms that large networks are faster with."""
    from robustguide.nets.fused_norm import kernels

    held = kernels()
    value = "compiled" if held else "those of torch, which are slower"
    repair = (
        "" if held else "install g++, or name a compiler as CXX (ROBUSTGUIDE_KERNELS=0 is off)"
    )
    return Finding("devices", "cpu norms", value, repair, False)


def tried(device: str, value: str) -> Finding:
    """A device, after a convolution and its gradient there."""
    import torch

    try:
        x = torch.ones(1, 1, 4, 4, device=device, requires_grad=True)
        y = torch.nn.functional.conv2d(x, torch.ones(1, 1, 3, 3, device=device))
        (grad,) = torch.autograd.grad(y.sum(), x)
        total = grad.sum().item()
    except Exception as error:
        repair = f"a convolution fails on {device}; install a build of torch for it"
        return Finding("devices", device, f"{value}; {error}", repair)
    repair = "" if total == 36 else f"a convolution is wrong on {device}; install torch anew"
    return Finding("devices", device, value, repair)


def threads() -> Iterator[Finding]:
    """Threads against the cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    yield Finding("threads", "cores", f"{cores} of {os.cpu_count()}")
    stated = os.environ.get("OMP_NUM_THREADS")
    yield Finding("threads", "OMP_NUM_THREADS", stated or "not set")
    try:
        import torch
    except Exception:
        return
    found = torch.get_num_threads()
    repair = f"more threads than cores are slow: set OMP_NUM_THREADS={cores}"
    yield Finding("threads", "torch", str(found), repair if found > cores else "", False)
