"""Images in an array on a real Slurm whose tasks are killed, requeued and cancelled."""

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import array_runs
import pytest
import tiny
import yaml
from slurm.cluster import Cluster

from robustguide.data.generated import open_samples

pytestmark = pytest.mark.check
COUNT, STEPS = 64, 200


@pytest.fixture(scope="module")
def cluster():
    with Cluster() as running:
        yield running


@pytest.fixture
def command(cluster, tmp_path):
    """`robustguide` from a folder like a clone of the repository."""
    (tmp_path / ".venv").symlink_to(sys.prefix)
    own = str(Path(sys.executable).parent)
    path = ":".join(place for place in os.environ["PATH"].split(":") if place != own)

    def run(*words):
        settings = {"PATH": path, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
        program = f"{tmp_path}/.venv/bin/robustguide"
        return cluster.run(program, *words, cwd=tmp_path, seconds=120, **settings)

    return run


def until(is_true, what, seconds=120):
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end, what()
        time.sleep(0.2)


def logs_of(plan):
    return lambda: "\n".join(f"{f}: {f.read_text()[-3000:]}" for f in plan.glob("logs/*"))


def sent(said):
    """Numbers of the array and of the merge."""
    return re.search(r"as job (\d+), the merge as (\d+)", said).groups()


def test_a_killed_a_requeued_and_a_cancelled_task(cluster, command, tmp_path):
    """Eight tasks, two at a time; the result is that of one run in one process."""
    (tmp_path / "sampling.yaml").write_text(yaml.safe_dump(array_runs.measured(steps=STEPS)))
    plan = tmp_path / "plan"
    logs = logs_of(plan)
    words = ["submit", "sampling.yaml", f"--num-samples={COUNT}", "--array=8%2", "--chunk=4"]
    array, merge = sent(command(*words, "--folder=plan"))

    def under_way(task):
        units = (2 * task * 4, (2 * task + 1) * 4)
        return any(list(plan.glob(f"all/parts/.{unit:012d}.task{task}.*.part")) for unit in units)

    def kill():
        os.kill(json.loads((plan / "tasks/0.json").read_text())["pid"], signal.SIGKILL)

    cluster.run("scancel", f"{array}_5")
    blows = {0: kill, 1: lambda: cluster.run("scontrol", "requeue", f"{array}_1")}

    def struck():  # each task in the middle of a chunk
        for task in [task for task in blows if under_way(task)]:
            blows.pop(task)()
        return not blows

    until(struck, logs)
    for task in (0, 1, 2, 3, 4, 6, 7):  # of 5, which never began, Slurm says nothing
        found = cluster.wait(f"{array}_{task}", 200, "COMPLETED" if task else "FAILED")
        assert found["Restarts"] == ("1" if task == 1 else "0"), logs()

    refused = cluster.wait(merge)
    text = (plan / f"logs/merge_{merge}.out").read_text()
    assert refused["JobState"] == "FAILED" and "--array=0,5 " in text, text
    assert not (plan / "all/results.json").exists()

    again, merge = sent(command(*words, "--folder=plan"))
    assert cluster.wait(merge, 200)["JobState"] == "COMPLETED", logs()
    assert {cluster.job(f"{again}_{task}")["JobState"] for task in (0, 5)} == {"COMPLETED"}
    assert "8 done" in command("status", "plan")

    tiny.run(tmp_path / "whole", "test", array_runs.measured(COUNT, STEPS))
    array_runs.same(array_runs.found(plan / "all"), array_runs.found(tmp_path / "whole"))
    samples = open_samples(plan / "all/samples")
    numbers = [number for batch in samples.batches(100) for number in batch.index.tolist()]
    assert numbers == list(range(COUNT))
    assert not list(plan.glob("all/parts/.*"))  # what killed tasks left is gone


def test_trainings_that_are_told_to_stop_requeued_and_sent_again(cluster, command, tmp_path):
    """Of three radii; whatever happens to a task, it ends as an unbroken training does."""
    trainer = {"max_steps": 600, "callbacks": [tiny.saving(50)]}
    config = tiny.merged(tiny.classification(attack=tiny.pgd()), {"trainer": trainer})
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(config))
    plan, radii = tmp_path / "plan", ("0.1", "0.2", "0.4")
    logs = logs_of(plan)
    words = ["submit", "fit", "fit.yaml", f"--sweep=model.attack.radius={','.join(radii)}"]
    array, merge = sent(command(*words, "--folder=plan"))

    def reached(radius, step):
        return lambda: any(
            int(path.stem.rpartition("=")[2]) >= step
            for path in plan.glob(f"radius={radius}/checkpoints/*step=*.ckpt")
        )

    until(reached("0.1", 50), logs)
    cluster.run("scancel", "--signal=USR1", f"{array}_0")
    until(reached("0.2", 100), logs)
    cluster.run("scontrol", "requeue", f"{array}_1")
    until(reached("0.4", 100), logs)
    cluster.run("scancel", f"{array}_2")
    for task in (0, 1):
        assert cluster.wait(f"{array}_{task}", 200, "COMPLETED")["Restarts"] == "1", logs()
    assert cluster.wait(merge)["JobState"] == "FAILED", logs()
    assert "--array=2 " in (plan / f"logs/merge_{merge}.out").read_text()

    again, merge = sent(command(*words, "--folder=plan"))
    assert cluster.wait(merge, 200)["JobState"] == "COMPLETED", logs()
    assert cluster.job(f"{again}_2")["JobState"] == "COMPLETED"
    assert (plan / "merged.md").read_text().count("| radius=") == 3
    command(*words, "--folder=unbroken", "--local=2")
    for radius in radii:
        ours, theirs = (
            (tmp_path / place / f"radius={radius}/classifier.safetensors").read_bytes()
            for place in ("plan", "unbroken")
        )
        assert ours == theirs, radius
        told = json.loads((plan / f"radius={radius}/results.json").read_text())
        assert told["run"]["resumed"]["step"] >= 50
