"""What an array task does, and what it tells of itself while it does it."""

import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from robustguide.files import whole
from robustguide.plans.arrays import Plan, Unit
from robustguide.plans.jobs import Job, run_jobs

BEAT = 10.0  # seconds between two signs of life
LOST = 300.0  # seconds without one, after which a task counts as lost
UNDER_WAY = ".part"


class Life:
    """Signs of life of a task, in a file that `robustguide status` reads.

    Args:
        plan: Of the task.
        task: Its number.
    """

    def __init__(self, plan: Plan, task: int) -> None:
        self.path = place_of(plan, task)
        self.facts: dict[str, Any] = {
            "task": task,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "job": job_of_slurm(),
        }
        self.told = 0.0

    def tell(self, state: str, **facts: Any) -> None:
        """Writes the file."""
        self.told = time.time()
        with whole(self.path) as part:
            part.write_text(json.dumps(self.facts | {"state": state, "time": self.told} | facts))

    def shown(self, name: str, line: str, lasted: float, ended: bool) -> None:
        """Writes it where the last time is long ago; called with what a job shows."""
        if time.time() - self.told > BEAT:
            self.tell("running", chunk=name, line=line)


def place_of(plan: Plan, task: int) -> Path:
    """Where a task tells of itself."""
    return plan.folder / "tasks" / f"{task}.json"


def job_of_slurm() -> str | None:
    """The array job and task that this process belongs to; null outside one."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def work(plan: Plan, task: int, say: Callable[[str], None]) -> None:
    """Makes the chunks of a task that are not there, one after another.

    A chunk is made by a process of its own in a folder of its own, which gets its name at the
    end. When it got there at the same time from another process, ours is left out.

    Args:
        plan: Of the task.
        task: Its number.
        say: Prints a line.

    Raises:
        ValueError: There is no such task, or the plan was edited.
        JobError: A chunk failed; those before it are there.
    """
    units, life = plan.of_task(task), Life(plan, task)
    life.tell("running")
    try:
        for number, unit in enumerate(units, 1):
            what = f"{unit.setting.name} {unit.folder.name} ({number} of {len(units)})"
            if unit.is_done:
                say(f"{what}: is there")
                continue
            with claimed(unit, plan, task) as folder:
                jobs = [job(plan, unit, folder)]
                seconds = run_jobs(jobs, plan.folder / "logs", 1, life.shown)
                settle(folder, unit.folder)
            say(f"{what}: made in {sum(seconds.values()):.0f} s")
    except BaseException as error:
        life.tell("failed", error=f"{type(error).__name__}: {error}"[-2000:])
        raise
    life.tell("done")


def job(plan: Plan, unit: Unit, folder: Path) -> Job:
    """The command of a chunk."""
    words = (
        *("test", "--config", str(plan.config(unit.setting))),
        f"--data.first={unit.numbers.start}",
        f"--data.count={len(unit.numbers)}",
        f"--trainer.default_root_dir={folder}",
        *("--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.logger=false"),
        "--trainer.callbacks+=robustguide.callbacks.PartWriter",
    )
    return Job(f"{unit.setting.name}_{unit.folder.name}", words)


def training(plan: Plan, unit: Unit) -> Job:
    """The command of a training."""
    words = ("fit", "--config", str(plan.config(unit.setting)))
    place = f"--trainer.default_root_dir={unit.folder}"
    return Job(f"fit_{unit.setting.name}", (*words, place))


@contextmanager
def claimed(unit: Unit, plan: Plan, task: int) -> Iterator[Path]:
    """A folder of this process beside the final one; what its task left before is removed."""
    unit.folder.parent.mkdir(parents=True, exist_ok=True)
    mine = f".{unit.folder.name}.task{task}."
    owner = f"{socket.gethostname()}.{os.getpid()}"
    for left in unit.folder.parent.glob(f"{mine}*{UNDER_WAY}"):
        if not is_alive(left.name.removeprefix(mine).removesuffix(UNDER_WAY)):
            shutil.rmtree(left, ignore_errors=True)
    folder = unit.folder.with_name(f"{mine}{owner}{UNDER_WAY}")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def is_alive(owner: str) -> bool:
    """Whether a process, as `host.pid`, may still be there; of another machine nobody knows."""
    host, _, pid = owner.rpartition(".")
    if host != socket.gethostname():
        return True
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def settle(folder: Path, final: Path) -> None:
    """Gives a folder its name, unless another process was first."""
    try:
        os.rename(folder, final)
    except OSError:
        if not final.is_dir():
            raise
