"""Memory of measuring: as much for twelve thousand images as for four thousand."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tiny

pytestmark = pytest.mark.check

SIDE = 64
FEW, MANY = 4096, 12_288  # both fill a tile of distances, which has 2,048 rows and columns
RUN = """
import json, sys
from pathlib import Path
from robustguide.__main__ import main
main(json.loads(sys.argv[1]))
status = Path("/proc/self/status").read_text()  # ru_maxrss would begin at that of the parent
print("peak", int(status.split("VmHWM:")[1].split()[0]) // 1024)
"""


def peak(*words):
    """MiB of a process of its own that runs a command."""
    command = [sys.executable, "-c", RUN, json.dumps(words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A network of 64 x 64 colour pixels, and two archives; the larger one is of 151 MB."""
    where = tmp_path_factory.mktemp("memory")
    described = tiny.merged(
        tiny.classifier(), {"init_args": {"net": {"init_args": {"shape": [3, SIDE, SIDE]}}}}
    )
    tiny.exported(where / "weights", described, shape=(3, SIDE, SIDE))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (10_000, SIDE, SIDE, 3), dtype=np.uint8)
    for n in (FEW, MANY):
        np.savez(where / f"{n}.npz", arr_0=images[:n])
    return where


def test_three_times_the_images_need_no_more_memory(place):
    told = ["--protocol=classifier_features", f"--weights={place}/weights", "--batch-size=128"]
    reference = f"{place}/reference"
    stats, score = {}, {}
    for n in (FEW, MANY):
        stats[n] = peak("stats", f"{place}/{n}.npz", *told, f"--out={reference}{n}")
    for n in (FEW, MANY):
        words = [*told, f"--reference={reference}{FEW}"]
        score[n] = peak("score", f"{place}/{n}.npz", *words)
    print(f"MiB of stats {stats}, of score {score}")
    # the images differ by 96 MiB, their features by a third of one
    assert stats[MANY] < stats[FEW] + 30
    assert score[MANY] < score[FEW] + 48
