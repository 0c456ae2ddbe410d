"""SLURM's signal, whenever it comes: saved after the batch, and continued as if it had not."""

import os
import signal
import threading

import pytest
import tiny
import torch
from lightning import Callback

SCHEDULE = {
    "class_path": "torch.optim.lr_scheduler.LinearLR",
    "init_args": {"start_factor": 1.0, "end_factor": 0.0, "total_iters": 14},
}
DATA = {"source": tiny.spec("data.Digits", fold=[0, 5]), "batch_size": 50, "eval_limit": 20}
EMA = tiny.spec("callbacks.EMA", decay=0.9)


class Tell(Callback):
    """Sends SLURM's signal to this process at a moment of the run's first start."""

    def __init__(self, hook: str):
        self.hook = hook

    def tell(self, hook, step, when):
        if hook == self.hook and step == when and "SLURM_RESTART_COUNT" not in os.environ:
            os.kill(os.getpid(), signal.SIGUSR1)

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.tell("step", trainer.global_step, 6)

    def on_validation_batch_start(self, trainer, *_):
        self.tell("validation", trainer.global_step, 5)


@pytest.fixture
def slurm(monkeypatch, tmp_path):
    """A job, whose `scontrol` notes what it is told; gives that file."""
    for name in [name for name in os.environ if name.startswith("SLURM")]:
        monkeypatch.delenv(name)
    names = "NTASKS=1 NTASKS_PER_NODE=1 JOB_NAME=train JOB_ID=102 PROCID=0 LOCALID=0 NODEID=0"
    for word in [*names.split(), "NODELIST=here"]:
        monkeypatch.setenv("SLURM_" + word.split("=")[0], word.split("=")[1])
    script = tmp_path / "bin/scontrol"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/told\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    before = signal.getsignal(signal.SIGUSR1), signal.pthread_sigmask(signal.SIG_BLOCK, [])
    yield tmp_path / "told"
    after = signal.getsignal(signal.SIGUSR1), signal.pthread_sigmask(signal.SIG_SETMASK, before[1])
    assert after[0] is before[0]


def config(hook):
    base = tiny.denoising(denoiser=tiny.denoiser(dropout=0.3), scheduler=SCHEDULE)
    tell = {"class_path": f"{__name__}.Tell", "init_args": {"hook": hook}}
    trainer = {"max_steps": 14, "val_check_interval": 5, "callbacks": [EMA, tell]}
    return tiny.merged(base, {"data": {"init_args": DATA}, "trainer": trainer})


def differences(one, other):
    """Names of tensors that differ, in nested dicts and lists."""
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else ["tensor"]
    if isinstance(one, dict | list | tuple):
        assert len(one) == len(other)
        keys = one.keys() if isinstance(one, dict) else range(len(one))
        return [f"{k}/{name}" for k in keys for name in differences(one[k], other[k])]
    return [] if one == other else [f"{one} {other}"]


@pytest.mark.parametrize(("hook", "step"), [("imports", 1), ("step", 7), ("validation", 6)])
def test_a_run_that_is_told_ends_as_if_it_were_not(
    slurm, tmp_path, monkeypatch, json_of, hook, step
):
    """In weights, their average, optimizer and noise, bit for bit; also amid a validation.

    `scontrol` kills nothing here, so the first start goes on to its end: the unbroken run.
    """
    run = tmp_path / "run"
    if hook == "imports":  # as the command begins, see `__main__.guard`
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)  # others do not block it
    first = tiny.run(run, "fit", config(hook))
    assert slurm.read_text() == "requeue 102\n"
    is_blocked = signal.SIGUSR1 in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert is_blocked == (hook == "imports")  # until the process ends, which may be exporting
    saved = torch.load(run / "hpc_ckpt_1.ckpt", weights_only=True)
    assert saved["global_step"] == step
    unbroken = (run / "denoiser.safetensors").read_bytes()
    (last,) = run.glob("checkpoints/*.ckpt")
    end = torch.load(last, weights_only=True)
    last.unlink()  # the job was ended before it
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    given = (
        tmp_path / "start.ckpt"
    )  # what the first start was given, and a later one is not to take
    given.touch()
    again = tiny.run(run, "fit", config(hook), f"--ckpt_path={given}")
    assert again.trainer.ckpt_path == str(run / "hpc_ckpt_1.ckpt")
    assert first.trainer.global_step == again.trainer.global_step == 14
    assert (run / "denoiser.safetensors").read_bytes() == unbroken
    (last,) = run.glob("checkpoints/*.ckpt")
    resumed = torch.load(last, weights_only=True)
    for key in ("state_dict", "current_model_state", "averaging_state", "optimizer_states"):
        assert differences(end[key], resumed[key]) == [], key
    assert json_of(run)["run"]["resumed"]["step"] == step
