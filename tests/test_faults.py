"""Work that is killed at random moments: no image lost or doubled, no half file, the same end.

    make faults KILLS=200 MOMENTS=1

A server imports everything once and forks each start of the work, so a kill costs seconds. What is
killed is the process and all that it started, as SLURM ends a job, or the process alone.
"""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
from faults import Preparing, Sampling, Saving, start

pytestmark = pytest.mark.check
KILLS = int(os.environ.get("KILLS") or 15)
MOMENTS = int(os.environ.get("MOMENTS") or random.SystemRandom().randrange(10**6))  # the seed


def struck(server, kind, folder, log, moment, alone):
    """Whether the work was killed, that moment after its start; else it has ended well."""
    process = server.Process(target=start, args=(kind, folder, log))
    process.start()
    process.join(moment)
    killed = process.is_alive()
    if killed:
        os.kill(process.pid, signal.SIGKILL)
    if killed and alone:
        process.join()
        time.sleep(0.02)  # what it started goes on for a while
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it started nothing, or has not even begun
    process.join()
    assert killed or process.exitcode == 0, Path(log).read_text(errors="replace")[-3000:]
    return killed


@pytest.mark.parametrize("place", range(3), ids=["preparing", "sampling", "saving"])
def test_killed_at_random_moments(tmp_path, place):
    """What was killed goes on, until it ends as if nothing had been."""
    kind = (Preparing, Sampling, Saving)[place](tmp_path)
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["robustguide.main", "faults"])
    log, rng = str(tmp_path / "log"), random.Random(f"{MOMENTS} {place}")
    for folder in (tmp_path / "first", tmp_path / "second"):  # the server starts with the first
        began = time.monotonic()
        assert not struck(server, kind, folder, log, 300, False)
        length = time.monotonic() - began
        kind.conclude(folder)
    wanted, killed, ended = KILLS // 3 + (place < KILLS % 3), 0, 0
    print(f"MOMENTS={MOMENTS}: {wanted} kills within {length:.2f} s")
    folder = tmp_path / "killed0"
    while killed < wanted or folder.exists():
        moment = rng.uniform(0.02, length) if killed < wanted else 300
        alone = rng.random() < 0.3
        if struck(server, kind, folder, log, moment, alone):
            killed += 1
            print(f"{killed}: {folder.name} at {moment:.3f} s{' alone' * alone}", flush=True)
            if folder.exists():
                kind.inspect(folder)
        else:
            kind.conclude(folder)
            ended += 1
            folder = tmp_path / f"killed{ended}"
    assert ended >= 1
