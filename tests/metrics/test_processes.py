"""Two processes that share the data give what one process gives with all of it."""

import json
import os
import subprocess
import sys
import warnings
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
    reference = metrics.Moments.of(features[:40] + 1)
    frechet = metrics.FrechetByNoise(reference, levels=2)
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


def answer(rows, rank=0):
    """What is kept by row says: numbers that do not differ at all. Rank 1 has no norms."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(3, 101, 5, generator=generator)
    y = torch.randint(5, (101,), generator=generator)
    norms = torch.randn(3, 40, generator=generator)
    metric, named = metrics.AnswersByLevel(3, 5), metrics.RowsByLevel(3, ["norm"])
    index = torch.arange(200, 301)[rows]
    for draw in range(2):
        metric.update(logits[:, rows] / (1 + draw), y[rows], index, draw)
    if rank == 0:
        named.update(torch.arange(40), 0, norm=norms)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a process without rows is what is tested
        found = [metric.compute(), named.compute()]
    answers, kept = found
    curves = (answers.ece, answers.adaptive_ece, answers.classwise_ece, answers.smooth_ece)
    return [
        *torch.cat([*curves, answers.mean_nll, answers.mean_brier]).tolist(),
        *answers.index.tolist(),
        *answers.draw.tolist(),
        *answers.confidence.flatten().tolist(),
        *answers.integral_interval(20),
        answers.sampling_error(20).integral_upper95,
        *kept["norm"].flatten().tolist(),
    ]


def evaluate_share(rank, rendezvous):
    """The same in one of two processes, which has every other row: 51 rows, or 50."""
    patience = timedelta(minutes=5)  # on a busy machine the imports alone take a minute
    dist.init_process_group(
        "gloo", f"file://{rendezvous}", timeout=patience, rank=rank, world_size=2
    )
    try:
        rows = slice(rank, None, 2)
        return evaluate(rows), answer(rows, rank)
    finally:
        dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    want, same = evaluate(slice(None)), answer(slice(None))
    root, rendezvous = Path(metrics.__file__).parents[2], str(tmp_path / "rendezvous")
    other = subprocess.Popen(
        [sys.executable, __file__, "1", rendezvous],
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        ours = evaluate_share(0, rendezvous)
        printed, _ = other.communicate(timeout=300)
    finally:
        other.kill()
        other.stdout.close()
        other.wait()
    for close, exact in (ours, json.loads(printed.splitlines()[-1])):
        assert close == pytest.approx(want, rel=1e-10)
        assert exact == same


if __name__ == "__main__":
    print(json.dumps(evaluate_share(int(sys.argv[1]), sys.argv[2])))
