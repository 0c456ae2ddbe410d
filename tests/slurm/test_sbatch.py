"""The batch scripts on a real Slurm, as they are."""

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
import tiny
from slurm.cluster import Cluster

from robustguide.checkpoints import read_metadata

pytestmark = pytest.mark.check
REPOSITORY = Path(__file__).parents[2]
DIGITS = [
    *("configs/overlay/digits.yaml", "--config", "configs/overlay/digits_classifier.yaml"),
    *("--config", "configs/fit/digits_plain.yaml"),
]


@pytest.fixture(scope="module")
def cluster():
    with Cluster() as running:
        yield running


@pytest.fixture
def send(cluster, tmp_path):
    """Submits a script from a folder like a clone of the repository; gives the job's number."""
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    # the command must come from .venv, and the batch script must find no other Python's
    own = str(Path(sys.executable).parent)
    path = ":".join(place for place in os.environ["PATH"].split(":") if place != own)
    environment = {"PATH": path, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}

    def submit(script, *arguments, options=()):
        words = ["sbatch", "--parsable", *options, str(REPOSITORY / "slurm" / script), *arguments]
        return cluster.run(*words, cwd=tmp_path, **environment)

    return submit


def log_of(folder, job):
    file = folder / f"slurm-{job}.out"
    return file.read_text(errors="replace") if file.exists() else ""


def first_steps(log):
    """The step at which each start of the training began."""
    lines = [line for line in log.splitlines() if re.match(r"fit +\d+/\d+ steps", line)]
    return [int(re.search(r"(\d+)/", line)[1]) for line in lines if "it/s" not in line]


def test_training_on_two_nodes_leaves_a_classifier(cluster, send, tmp_path):
    job = send("fit.sbatch", *DIGITS, "--trainer.max_steps=20", options=["--nodes=2"])
    assert cluster.wait(job)["JobState"] == "COMPLETED", log_of(tmp_path, job)
    run = tmp_path / f"runs/robustguide-fit-{job}"
    assert read_metadata(run / "classifier.safetensors").extra["steps"] == 20
    assert json.loads((run / "results.json").read_text())["run"]["world_size"] == 2
    assert os.listdir(tmp_path / "runs") == [run.name]


def test_a_training_that_is_told_to_stop_is_requeued_and_resumes(cluster, send, tmp_path):
    steps = 1500
    job = send("fit.sbatch", *DIGITS, f"--trainer.max_steps={steps}")
    end = time.monotonic() + 60
    while f"/{steps} steps   10%" not in log_of(tmp_path, job):
        assert time.monotonic() < end, log_of(tmp_path, job)
        time.sleep(0.2)
    cluster.run("scancel", "--signal=USR1", job)  # what --signal sends before the time limit
    described = cluster.wait(job)
    log = log_of(tmp_path, job)
    assert (described["JobState"], described["Restarts"]) == ("COMPLETED", "1"), log
    began = first_steps(log)
    assert began[0] == 0 and len(began) == 2 and steps / 10 <= began[1] < steps, log
    run = tmp_path / f"runs/robustguide-fit-{job}"
    assert (run / "hpc_ckpt_1.ckpt").is_file() and not (run / "hpc_ckpt_2.ckpt").exists()
    assert read_metadata(run / "classifier.safetensors").extra["steps"] == steps


def is_guarded(run):
    """Whether a training into this folder has begun, and blocks SLURM's signal."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_text().split("\0")
            if "python" in words[0] and f"--trainer.default_root_dir={run}" in words:
                (mask,) = re.findall(r"SigBlk:\s*(\w+)", (process / "status").read_text())
                return bool(int(mask, 16) >> (signal.SIGUSR1 - 1) & 1)
        except (OSError, ValueError):
            pass  # it has ended
    return False


def until(is_true, log, seconds=60):
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end, log()
        time.sleep(0.05)


def test_a_training_that_is_told_while_it_starts_is_requeued(cluster, send, tmp_path):
    """The signal comes during the imports, long before anybody could answer it."""
    job = send("fit.sbatch", *DIGITS, "--trainer.max_steps=50", options=["--job-name=early"])
    until(lambda: is_guarded(f"runs/early-{job}"), lambda: log_of(tmp_path, job))
    assert not first_steps(log_of(tmp_path, job))
    cluster.run("scancel", "--signal=USR1", job)
    described, log = cluster.wait(job), log_of(tmp_path, job)
    assert (described["JobState"], described["Restarts"]) == ("COMPLETED", "1"), log
    assert first_steps(log) == [0, 1], log
    run = tmp_path / f"runs/early-{job}"
    assert read_metadata(run / "classifier.safetensors").extra["steps"] == 50


def test_two_nodes_that_are_stopped_end_as_if_they_were_not(cluster, send, tmp_path):
    """Told by SLURM's signal, and then killed without a word, on two nodes, joined by gloo."""
    steps = 400
    saving = f"--trainer.callbacks+={json.dumps(tiny.saving(50))}"
    words = (*DIGITS, f"--trainer.max_steps={steps}", saving)
    unbroken = send("fit.sbatch", *words, options=["--nodes=2"])
    assert cluster.wait(unbroken)["JobState"] == "COMPLETED", log_of(tmp_path, unbroken)
    job = send("fit.sbatch", *words, options=["--nodes=2"])
    run = tmp_path / f"runs/robustguide-fit-{job}"

    def saved(step):
        return lambda: any(run.glob(f"checkpoints/*step={step}.ckpt"))

    until(saved(100), lambda: log_of(tmp_path, job))
    cluster.run("scancel", "--signal=USR1", job)
    until(saved(250), lambda: log_of(tmp_path, job), 90)
    cluster.run("scontrol", "requeue", job)  # TERM, which Lightning passes over, and KILL
    described, log = cluster.wait(job), log_of(tmp_path, job)
    assert (described["JobState"], described["Restarts"]) == ("COMPLETED", "2"), log
    first, second, third = first_steps(log)
    assert first == 0 and 100 <= second < 250 <= third < steps, log
    one, other = (
        tmp_path / f"runs/robustguide-fit-{each}/classifier.safetensors"
        for each in (unbroken, job)
    )
    assert one.read_bytes() == other.read_bytes()
    results = json.loads((run / "results.json").read_text())
    assert results["run"]["resumed"]["step"] == third
    assert results["run"]["resumed"]["data"].startswith("exact")


def test_a_second_training_is_kept_out_of_the_folder(cluster, send, tmp_path):
    options = [f"--export=ALL,RUN_FOLDER={tmp_path}/runs/one"]
    first = send("fit.sbatch", *DIGITS, "--trainer.max_steps=100000", options=options)
    until(lambda: first_steps(log_of(tmp_path, first)), lambda: log_of(tmp_path, first))
    second = send("fit.sbatch", *DIGITS, "--trainer.max_steps=20", options=options)
    assert cluster.wait(second)["JobState"] == "FAILED"
    assert re.search(rf"in use by .* \(SLURM job {first}\) since", log_of(tmp_path, second))
    assert cluster.job(first)["JobState"] == "RUNNING"
    cluster.run("scancel", first)


def test_a_training_that_fails_is_a_job_that_fails(cluster, send, tmp_path):
    missing = send("fit.sbatch", "configs/fit/no_such.yaml")
    unnamed = send("fit.sbatch")
    for job, said in ((missing, "no_such.yaml"), (unnamed, "name a configuration")):
        described = cluster.wait(job)
        assert described["JobState"] == "FAILED" and described["ExitCode"] != "0:0"
        assert said in log_of(tmp_path, job)
