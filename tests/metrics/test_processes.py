"""Two processes that share the data give what one process gives with all of it."""

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from robustguide import metrics


def evaluate(rows):
    """What calibration by noise and the Frechet distance say of these of 101 rows."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(101, 5, generator=generator)
    y = torch.randint(5, (101,), generator=generator)
    features = torch.randn(101, 4, generator=generator)
    calibration = metrics.CalibrationByNoise(3)
    reference = metrics.Moments.of(features[:40] + 1, "net")
    frechet = metrics.FrechetByNoise(reference, "net", levels=2)
    calibration.update(logits[rows], y[rows], torch.arange(101)[rows] % 3)
    for level in range(2):
        frechet.update((1 + level) * features[rows], level)
    table = calibration.compute()
    return [
        *table.ece.tolist(),
        *table.accuracy.tolist(),
        *table.count.tolist(),
        *[value for result in frechet.compute() for value in result],
    ]


def evaluate_share(rank, rendezvous):
    """The same in one of two processes, which has every other row: 51 rows, or 50."""
    patience = timedelta(seconds=60)
    dist.init_process_group(
        "gloo", f"file://{rendezvous}", timeout=patience, rank=rank, world_size=2
    )
    try:
        return evaluate(slice(rank, None, 2))
    finally:
        dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    want = evaluate(slice(None))
    root, rendezvous = Path(metrics.__file__).parents[2], str(tmp_path / "rendezvous")
    other = subprocess.Popen(
        [sys.executable, __file__, "1", rendezvous],
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert evaluate_share(0, rendezvous) == pytest.approx(want, rel=1e-10)
        answer, _ = other.communicate(timeout=60)
    finally:
        other.kill()
        other.stdout.close()
        other.wait()
    assert json.loads(answer.splitlines()[-1]) == pytest.approx(want, rel=1e-10)


if __name__ == "__main__":
    print(json.dumps(evaluate_share(int(sys.argv[1]), sys.argv[2])))
