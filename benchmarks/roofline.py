"""How far the robust and the guided step are from what the device can do, by kind of operation.

    python benchmarks/roofline.py [--checkpoint FILE] [--repeats 3]

Every operation is timed and its FLOPs and bytes are counted: bytes are those of the tensors that
go in and come out. The least time of an operation is the larger one of FLOPs at the measured peak
of matrix products, in the type that was multiplied, and of bytes at the measured speed of a copy;
what is made of tensors that a cache holds can be faster than that. `of the limit` is the least
time over the time spent. Timing each operation waits for it, so that GPUs look slower than they
are.
"""

import argparse
import re
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import robust
import sampling
import torch
import turns
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from robustguide.machine.flops import formula_of
from robustguide.machine.laps import clock
from robustguide.machine.peak import matmul_peak
from robustguide.nets import fused_norm
from robustguide.nets.fused_norm import run_kernel
from robustguide.noise import RhoGrid
from robustguide.samplers import Heun

# Kinds of operations, the first that is found in a name.
KINDS = {
    "convolutions": r"convolution",
    "matrix products": r"mm|matmul|attention",
    "softmax": r"softmax",
    "norms, ours with scale, shift and SiLU": r"norm",
    "activations": r"silu|sigmoid|gelu",
    "copies": r"copy|clone|cat|stack|index|contiguous|constant_pad|upsample",
    "the rest, element by element": "",
}
COPIED = 2**28  # bytes


@dataclass
class Spent:
    """Of one kind."""

    seconds: float = 0.0
    flops: int = 0
    bytes: int = 0
    least: float = 0.0
    calls: int = 0


class Roofline(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    """Times operations and counts their work.

    Args:
        device: Works.
        bandwidth: Bytes a second that a copy reads and writes there.
    """

    def __init__(self, device: torch.device, bandwidth: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.device, self.bandwidth = device, bandwidth
        self.kinds: dict[str, Spent] = defaultdict(Spent)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        start = clock(self.device)
        made = func(*args, **(kwargs or {}))
        seconds = clock(self.device) - start
        packet = func._overloadpacket
        name = packet.__name__
        if func.is_view or name in ("detach", "empty", "empty_like", "empty_strided"):
            return made
        formula = formula_of(packet, name)
        flops = formula(*args, **(kwargs or {}), out_val=made) if formula else 0
        tensors = [each for each in tree_leaves((args, kwargs, made)) if isinstance(each, Tensor)]
        self.note(name, seconds, flops, tensors)
        return made

    def kernel(self, name: str, tensors: list[Tensor], *given: Any) -> None:
        """Runs a kernel of ours, which torch does not see."""
        start = clock(self.device)
        run_kernel(name, tensors, *given)
        self.note("norm", clock(self.device) - start, 0, tensors)

    def note(self, name: str, seconds: float, flops: int, tensors: list[Tensor]) -> None:
        """Adds an operation, whose work is on tensors, in and out."""
        moved = sum(each.numel() * each.element_size() for each in tensors)
        spent = self.kinds[next(kind for kind, words in KINDS.items() if re.search(words, name))]
        spent.seconds += seconds
        spent.flops += flops
        spent.bytes += moved
        spent.calls += 1
        bound = moved / self.bandwidth
        if flops:
            peak = matmul_peak(self.device, tensors[0].dtype) or float("inf")
            bound = max(bound, flops / peak)
        spent.least += bound


def bandwidth(device: torch.device) -> float:
    """Bytes read and written a second by the fastest of some copies."""
    source = torch.zeros(COPIED // 4, device=device)
    target = torch.empty_like(source)
    return 2 * COPIED / min(turns.seconds(lambda: target.copy_(source)) for _ in range(5))


def table(what: str, work: Callable[[], object], repeats: int, speed: float) -> list[str]:
    """Markdown for one piece of work."""
    work()
    alone = min(turns.seconds(work) for _ in range(repeats))
    roof = Roofline(robust.DEVICE, speed)
    with roof, patch.object(fused_norm, "run_kernel", roof.kernel):
        for _ in range(repeats):
            work()
    whole = sum(each.seconds for each in roof.kinds.values())
    least = sum(each.least for each in roof.kinds.values())
    lines = [
        f"{what}: {alone:.3g} s, of which operations {whole / repeats:.3g} s; "
        f"the limit is {least / repeats:.3g} s",
        "",
        "| kind | share of the time | GFLOP | GB | FLOP/s | GB/s | of the limit |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for kind in KINDS:
        each = roof.kinds[kind]
        if not each.calls:
            continue
        lines.append(
            f"| {kind} | {each.seconds / whole:.0%} | {each.flops / repeats / 1e9:.3g} | "
            f"{each.bytes / repeats / 1e9:.3g} | {each.flops / each.seconds:.3g} | "
            f"{each.bytes / each.seconds / 1e9:.3g} | {each.least / each.seconds:.0%} |"
        )
    return lines


def main() -> int:
    """Reads the command line, measures and tells."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--checkpoint", type=Path, default=robust.CHECKPOINT)
    arguments.add_argument("--repeats", type=int, default=3)
    given = arguments.parse_args()
    step, (batch,) = robust.Ours(given.checkpoint), robust.batches(1)
    guided = sampling.Ours(Heun(RhoGrid(2, sigma_min=0.5, sigma_max=2.0)))
    speed = bandwidth(robust.DEVICE)
    for dtype in (torch.bfloat16, torch.float32):
        matmul_peak(robust.DEVICE, dtype)  # outside what is watched
    tables = {
        "robust": table("Robust step", lambda: step(batch), given.repeats, speed),
        "guided": table("Two guided steps, 8 images", lambda: guided(8), given.repeats, speed),
    }
    facts: dict[str, object] = {
        "copy, GB/s": f"{speed / 1e9:.3g}",
        "matmul peak in bfloat16, FLOP/s": f"{matmul_peak(robust.DEVICE, torch.bfloat16):.3g}",
        "matmul peak in float32, FLOP/s": f"{matmul_peak(robust.DEVICE, torch.float32):.3g}",
    }
    for lines in tables.values():
        print("\n".join([*lines, ""]))
    text = "\n\n".join("\n".join(lines) for lines in tables.values())
    turns.record("roofline", facts=facts, text=text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
