"""Precision and recall of random features from files, one way, in a process of its own.

    python benchmarks/neighbours.py {dense,single,ours} ROWS THREADS

Prints seconds, bytes of memory beyond those of the features, and the numbers, as JSON. "dense" is
the matrix of all distances in float64, sorted; "single" is the same in float32 with `kthvalue`,
as in torch-fidelity, whose values are those of float64 only where no pair is near an edge.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from robustguide.metrics.neighbours import balls
from robustguide.metrics.tables import Filed

DIM, K = 2048, 3


def write(folder: Path, rows: int) -> list[Filed]:
    """Samples and real images as files; variances decay as those of learned features do."""
    scales = torch.arange(1, DIM + 1) ** -0.25
    tables = []
    for seed, name in enumerate(("samples", "real")):
        generator = torch.Generator().manual_seed(seed)
        with (folder / name).open("wb") as file:
            for first in range(0, rows, 1000):
                count = min(1000, rows - first)
                block = torch.randn(count, DIM, generator=generator) * scales * (1 + 0.01 * seed)
                file.write(block.numpy().tobytes())
        tables.append(Filed(folder / name, rows, DIM))
    return tables


def dense(samples: Tensor, real: Tensor) -> tuple[float, float]:
    """From the matrices of all distances in float64."""
    samples, real = samples.double(), real.double()
    of_real = torch.cdist(real, real).sort(dim=1).values[:, K].clone()
    of_samples = torch.cdist(samples, samples).sort(dim=1).values[:, K].clone()
    between = torch.cdist(samples, real)
    precision = (between <= of_real).any(1).double().mean()
    recall = (between <= of_samples[:, None]).any(0).double().mean()
    return float(precision), float(recall)


def single(samples: Tensor, real: Tensor) -> tuple[float, float]:
    """From the matrices of all distances in float32."""
    of_real = torch.cdist(real, real).kthvalue(K + 1).values
    of_samples = torch.cdist(samples, samples).kthvalue(K + 1).values
    between = torch.cdist(samples, real)
    precision = (between <= of_real).any(1).double().mean()
    recall = (between <= of_samples[:, None]).any(0).double().mean()
    return float(precision), float(recall)


def ours(samples: Filed, real: Filed) -> tuple[float, float]:
    """By tiles, from the files."""
    found = balls(samples, real, K, inclusive=True)
    return float(found.of_samples()["precision"].mean()), float(found.of_real()["recall"].mean())


def memory(field: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) * 1024


def main(way: str, rows: int, threads: int) -> dict[str, float]:
    """Runs one way."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        tables = write(Path(folder), rows)
        torch.randn(512, 512) @ torch.randn(512, 512)  # the library's own memory is nobody's
        inputs = tables if way == "ours" else [table.block(0, rows) for table in tables]
        before = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of writing
        start = time.perf_counter()
        precision, recall = {"dense": dense, "single": single, "ours": ours}[way](*inputs)
        seconds = time.perf_counter() - start
        peak = memory("VmHWM")
    return {
        "seconds": seconds,
        "bytes": peak - before,
        "resident": peak,
        "precision": precision,
        "recall": recall,
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
