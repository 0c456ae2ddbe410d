"""Preparation that is killed: no file is half written, and the next run ends with the same bytes.

Processes are forked, so that nothing is imported twice.
"""

import multiprocessing
import os
import random
import select
import shutil
import signal
import time

import photographs
import pytest

from robustguide.data import DataError, Folder, ImageWriter

pytestmark = [pytest.mark.check, pytest.mark.filterwarnings("ignore:.*fork")]
KILLS = 12


def prepare(photos, shards, tell=lambda count: None):
    ImageWriter(per_shard=20, num_workers=2, tell=tell).write(Folder(photos, 64), shards)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    return str(photographs.folder(root, {"train": 150, "val": 10, "test": 40}))


def test_killed_at_random_moments(photos, tmp_path):
    start = time.monotonic()
    prepare(photos, str(tmp_path / "whole"))
    taken = time.monotonic() - start
    whole, shards = photographs.contents(tmp_path / "whole"), tmp_path / "shards"
    seed = random.SystemRandom().randrange(10**6)
    print("seed", seed)
    rng = random.Random(seed)
    fork, killed = multiprocessing.get_context("fork"), 0
    end, inherited = os.pipe()
    for _ in range(KILLS):
        process = fork.Process(target=prepare, args=(photos, str(shards)))
        process.start()
        time.sleep(rng.uniform(0.02, max(taken / 2, 0.1)))
        killed += process.is_alive()
        process.kill()
        process.join()
        for path in shards.glob("[!.]*"):  # every file of a final name is whole
            assert path.read_bytes() == whole[path.name], path.name
        if (shards / "manifest.json").exists():  # it was done; begin anew
            shutil.rmtree(shards)
    assert killed >= 2
    os.close(inherited)  # the other end is read when no process has it any more
    assert select.select([end], [], [], 30)[0], "a worker of a killed process lives on"
    os.close(end)
    prepare(photos, str(shards))
    assert photographs.contents(shards) == whole


def test_a_worker_that_is_killed_is_told_of(photos, tmp_path):
    prepare(photos, str(tmp_path / "whole"))
    shards, workers = tmp_path / "shards", []

    def kill(count):
        if count and not workers:
            workers.extend(multiprocessing.active_children())
            os.kill(workers[0].pid, signal.SIGKILL)

    with pytest.raises(DataError, match=r"worker process was ended from outside .*it goes on"):
        prepare(photos, str(shards), kill)
    assert not (shards / "manifest.json").exists()
    prepare(photos, str(shards))
    assert photographs.contents(shards) == photographs.contents(tmp_path / "whole")
