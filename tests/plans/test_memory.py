"""Memory of measuring: as much for ten thousand images as for one thousand."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tiny

from robustguide.checkpoints import build, export

pytestmark = pytest.mark.check

SIDE = 64
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
    """A network of 64 x 64 colour pixels, and two archives; the larger one is of 123 MB."""
    where = tmp_path_factory.mktemp("memory")
    described = tiny.merged(
        tiny.classifier(), {"init_args": {"net": {"init_args": {"shape": [3, SIDE, SIDE]}}}}
    )
    names = [str(digit) for digit in range(10)]
    made, shape = build(described), [3, SIDE, SIDE]
    export(made, where / "weights", described, class_names=names, shape=shape, weights="raw")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (10_000, SIDE, SIDE, 3), dtype=np.uint8)
    np.savez(where / "10000.npz", arr_0=images)
    np.savez(where / "1000.npz", arr_0=images[:1000])
    return where


def test_ten_times_the_images_need_no_more_memory(place):
    told = ["--protocol=classifier_features", f"--weights={place}/weights", "--batch-size=100"]
    reference = f"{place}/reference"
    stats, score = {}, {}
    for n in (1000, 10_000):
        stats[n] = peak("stats", f"{place}/{n}.npz", *told, f"--out={reference}{n}")
    for n in (1000, 10_000):
        words = [*told, f"--reference={reference}1000"]
        score[n] = peak("score", f"{place}/{n}.npz", *words)
    print(f"MiB of stats {stats}, of score {score}")
    # the images differ by 105 MiB, their features by half of one
    assert stats[10_000] < stats[1000] + 30
    assert score[10_000] < score[1000] + 90  # a tile of distances grows to 64 MiB
