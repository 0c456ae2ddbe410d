"""A run folder serves one run at a time, however that ends."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time

import pytest

from robustguide.files import LOCK, alone

HOLD = """
import sys, time
from robustguide.files import alone
with alone(sys.argv[1]):
    if "fork" in sys.argv:
        import os
        if os.fork() == 0:
            time.sleep(60)
    print("in", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def hold(tmp_path):
    """Starts another process that is in the folder, with such variables."""
    started = []

    def start(*words, **variables):
        outside = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path), *words],
            stdout=subprocess.PIPE,
            env=outside | variables,
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout.readline() == b"in\n"
        return process

    yield start
    for process in started:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
        process.stdout.close()


def enter(folder):
    with alone(folder):
        return (folder / LOCK).read_bytes() == b""


def test_a_second_run_is_told_of_the_first(hold, tmp_path):
    process = hold(SLURM_ARRAY_JOB_ID="7", SLURM_JOB_ID="9", SLURM_ARRAY_TASK_ID="3")
    message = rf"in use by process {process.pid} on \S+ \(SLURM job 7_3\) since .*default_root_dir"
    with pytest.raises(ValueError, match=message):
        enter(tmp_path)
    with pytest.raises(ValueError, match=message):  # the refused one has changed nothing
        enter(tmp_path)


@pytest.mark.parametrize("words", [(), ("fork",)])
def test_one_that_was_killed_leaves_no_lock(hold, tmp_path, words):
    """Nor do its own processes, as data workers, that live on for a while."""
    hold(*words).kill()
    end = time.monotonic() + 5
    while True:
        try:
            with alone(tmp_path):
                break
        except ValueError:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_a_requeued_job_does_not_wait_for_its_former_start(hold, tmp_path, monkeypatch):
    hold(SLURM_JOB_ID="5")
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    with pytest.raises(ValueError, match="in use"):  # a second step of the same start
        enter(tmp_path)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    enter(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "6")
    with pytest.raises(ValueError, match="in use"):
        enter(tmp_path)


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def lockf(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", lockf)
    with pytest.warns(UserWarning, match="has no locks .*nothing keeps a second run out"):
        enter(tmp_path)
