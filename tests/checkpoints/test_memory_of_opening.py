"""How much memory opening takes, in files of a gigabyte."""

import json
import subprocess
import sys

import pytest
import snapshot_files
import torch
from safetensors.torch import save_file

GIGABYTE = 2**30
MEASURE = """
import gc, json, sys, torch
from robustguide.checkpoints.opening import open_tensors

def memory(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

open_tensors(sys.argv[1])
gc.collect()
open("/proc/self/clear_refs", "w").write("5")  # forget the peak
before = memory("VmRSS")
opened = open_tensors(sys.argv[2])
total = sum(float(x.sum()) for x in opened.tensors.values())
print(json.dumps([memory("VmHWM") - before, total]))
"""


def state(size):
    parts = 16
    return {f"layer{i}.weight": torch.full((size // parts // 4,), i / 8) for i in range(parts)}


def write(kind, path, size):
    values = state(size)
    if kind == "safetensors":
        save_file(values, path)
    elif kind == "torch archive":
        torch.save(values, path)
    else:
        ema = snapshot_files.module("EDMPrecond", values, img_resolution=64)
        path.write_bytes(snapshot_files.snapshot({"ema": ema}))


@pytest.mark.check
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("kind", "most"), [("safetensors", 1.3), ("torch archive", 1.3), ("snapshot", 2.5)]
)
def test_a_gigabyte_takes_little_more_than_itself(kind, most, tmp_path):
    small, large = tmp_path / "small", tmp_path / "large"
    write(kind, small, 2**16)
    write(kind, large, GIGABYTE)
    assert large.stat().st_size > GIGABYTE
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, small, large], capture_output=True, check=True, text=True
    )
    rise, total = json.loads(run.stdout)
    assert total == sum(i / 8 for i in range(16)) * GIGABYTE / 16 / 4
    print(f"{kind}: {rise / GIGABYTE:.2f} times the file")
    assert rise < most * large.stat().st_size
