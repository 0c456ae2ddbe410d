"""Checkpoints are whole or not there."""

import errno
import os
import resource
import signal
import time

import pytest
import torch

from robustguide.callbacks.saving import WholeCheckpoints, remove_parts

STATE = {"weights": torch.arange(1000.0), "step": 7}


def killed(save, is_time):
    """Runs `save` in another process and kills that when it is time."""
    child = os.fork()
    if child == 0:
        save()
        os._exit(0)
    while not is_time():
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "it was done before it could be killed"
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


@pytest.mark.parametrize("megabytes", [1, 60, 150])
def test_one_that_is_killed_leaves_the_older_file(tmp_path, megabytes):
    """Half written, but under no name that anybody reads; the next start removes that."""
    path, part = tmp_path / "hpc_ckpt_2.ckpt", tmp_path / ".hpc_checkpoint_2.checkpoint.part"
    WholeCheckpoints().save_checkpoint(STATE, path)
    large = {"weights": torch.zeros(50_000_000), "step": 8}
    killed(
        lambda: WholeCheckpoints().save_checkpoint(large, path),
        lambda: part.exists() and part.stat().st_size > megabytes * 1e6,
    )
    found = torch.load(path, weights_only=True)
    assert found["step"] == 7 and torch.equal(found["weights"], STATE["weights"])
    assert 0 < part.stat().st_size and "hpc_ckpt_" not in part.name
    remove_parts([tmp_path])
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_a_save_within_a_save(tmp_path):
    """SLURM's signal may come while another checkpoint is written."""
    io, inner = WholeCheckpoints(), tmp_path / "hpc_ckpt_1.ckpt"

    def handler(*_):
        io.save_checkpoint(STATE, inner)

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        io.save_checkpoint({"a": [torch.ones(1_000_000) for _ in range(40)]}, tmp_path / "a.ckpt")
        end = time.monotonic() + 2
        while not inner.exists() and time.monotonic() < end:
            time.sleep(0.01)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert torch.load(inner, weights_only=True)["step"] == 7
    assert len(torch.load(tmp_path / "a.ckpt", weights_only=True)["a"]) == 40
    assert len(list(tmp_path.iterdir())) == 2


def test_a_full_disk_leaves_the_older_file(tmp_path):
    path = tmp_path / "last.ckpt"
    WholeCheckpoints().save_checkpoint(STATE, path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"Cannot save a checkpoint \(File too") as raised:
            WholeCheckpoints().save_checkpoint({"a": torch.zeros(1_000_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert raised.value.errno == errno.EFBIG and raised.value.filename == str(path)
    assert torch.load(path, weights_only=True)["step"] == 7
    assert [each.name for each in tmp_path.iterdir()] == ["last.ckpt"]
