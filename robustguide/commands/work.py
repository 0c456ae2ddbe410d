"""One task of a plan: its chunks that are not there yet, one after another."""

import os
import sys
from pathlib import Path

from jsonargparse import ArgumentParser

from robustguide.commands.formatter import Formatter

EXAMPLES = """Array tasks call it; by hand it does the same. What is there is not made again.

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


def train(plan: "Plan", task: int) -> None:  # type: ignore[name-defined]  # noqa: F821
    """Becomes the training: signals of Slurm reach it, and each process of a node is one."""
    (unit,) = plan.of_task(task)
    words = ("fit", "--config", str(plan.config(unit.setting)))
    place = f"--trainer.default_root_dir={unit.folder}"
    os.execv(sys.executable, [sys.executable, "-m", "robustguide", *words, place])


def parser() -> ArgumentParser:
    """The arguments."""
    arguments = ArgumentParser(
        prog="robustguide work", description=__doc__, epilog=EXAMPLES, formatter_class=Formatter
    )
    arguments.add_argument("plan", type=str, metavar="PLAN", help="folder of the plan")
    arguments.add_argument("task", type=int, metavar="TASK", help="number of the task, from 0")
    return arguments
