"""How far the tasks of a plan are."""

import json
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from robustguide.plans.arrays import Plan, Setting
from robustguide.plans.tasks import LOST, is_alive, place_of

JOBS = "jobs.json"  # numbers of the arrays that were sent


@dataclass(frozen=True)
class Task:
    """How far one is.

    Attributes:
        number: Its number.
        state: "done", "running", "queued" (Slurm has it), "failed", or "missing".
        done: Units that are there.
        count: Units that it has.
        said: What is known beside that.
    """

    number: int
    state: str
    done: int
    count: int
    said: str = ""


def tasks_of(plan: Plan) -> list[Task]:
    """All tasks of a plan."""
    queue = queued(jobs_of(plan))
    return [task_of(plan, number, queue) for number in range(plan.tasks)]


def task_of(plan: Plan, number: int, queue: dict[int, str]) -> Task:
    """One task, by what is there, what it told and what Slurm says."""
    units = plan.of_task(number)
    done = sum(unit.is_done for unit in units)
    if done == len(units):
        return Task(number, "done", done, done)
    path = place_of(plan, number)
    told: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    in_slurm, where = queue.get(number), f"{told.get('host')}, process {told.get('pid')}"
    if told.get("state") == "running":
        age = time.time() - told["time"]
        if age < LOST and is_alive(f"{told['host']}.{told['pid']}") and in_slurm != "PENDING":
            return Task(number, "running", done, len(units), where)
        if in_slurm is None:
            said = f"no sign of life from {where} for {age:.0f} s"
            return Task(number, "failed", done, len(units), said)
    if in_slurm is not None:
        state = "running" if in_slurm == "RUNNING" else "queued"
        return Task(number, state, done, len(units), f"Slurm says {in_slurm}")
    if told.get("state") == "failed":
        return Task(number, "failed", done, len(units), str(told.get("error")))
    return Task(number, "missing", done, len(units))


def jobs_of(plan: Plan) -> list[str]:
    """Numbers of the arrays that were sent for a plan."""
    path = plan.folder / JOBS
    found: list[str] = json.loads(path.read_text()) if path.is_file() else []
    return found


def queued(jobs: Sequence[str]) -> dict[int, str]:
    """What Slurm says of the tasks that it has; nothing where there is none to ask."""
    if not jobs or shutil.which("squeue") is None:
        return {}
    command = ["squeue", "-h", "-r", "-j", ",".join(jobs), "-o", "%K %T"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    rows = (line.split() for line in answer.stdout.splitlines())
    return {int(row[0]): row[1] for row in rows if len(row) == 2 and row[0].isdecimal()}


def made(plan: Plan, setting: Setting) -> tuple[int, int]:
    """Images (or trainings) of a setting that are there, and that there will be."""
    units = [unit for unit in plan.units if unit.setting == setting]
    sizes = [len(unit.numbers) or 1 for unit in units]
    there = (size for unit, size in zip(units, sizes, strict=True) if unit.is_done)
    return sum(there), sum(sizes)
