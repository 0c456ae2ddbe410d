"""One task of a plan: its chunks that are not there yet, one after another."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser

from robustguide.commands.formatter import Formatter

if TYPE_CHECKING:  # imports what --help does not need
    from robustguide.plans.arrays import Plan

EXAMPLES = """Array tasks call it; by hand it does the same. What is there is not made again; a
training that was stopped goes on from its newest checkpoint.

examples:
  robustguide work runs/array 0
"""


def run(args: list[str]) -> None:
    """Reads the command line and does the work."""
    from robustguide.plans.arrays import Plan
    from robustguide.plans.tasks import work

    given = parser().parse_args(args)
    plan = Plan.read(Path(given.plan))
    if plan.stage == "fit":
        train(plan, given.task)
    else:
        work(plan, given.task, lambda line: print(line, flush=True))


def train(plan: "Plan", task: int) -> None:
    """Becomes the training: signals of Slurm reach it, and each process of a node is one."""
    from robustguide.plans.tasks import training

    (unit,) = plan.of_task(task)
    if unit.is_done:
        print(f"{unit.setting.name}: is there")
        return
    os.execv(sys.executable, [sys.executable, "-m", "robustguide", *training(plan, unit).args])


def parser() -> ArgumentParser:
    """The arguments."""
    arguments = ArgumentParser(
        prog="robustguide work", description=__doc__, epilog=EXAMPLES, formatter_class=Formatter
    )
    arguments.add_argument("plan", type=str, metavar="PLAN", help="folder of the plan")
    arguments.add_argument("task", type=int, metavar="TASK", help="number of the task, from 0")
    return arguments
