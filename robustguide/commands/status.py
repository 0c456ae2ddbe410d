"""How far the tasks of a plan are: done, running, queued, failed or missing."""

from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.table import Table

from robustguide.commands.formatter import Formatter

if TYPE_CHECKING:  # imports what --help does not need
    from robustguide.plans.arrays import Plan

EXAMPLES = """examples:
  robustguide status runs/array

exit code: 0 when all is there, 1 when not
"""
SHOWN = 10  # tasks in trouble that are listed


def run(args: list[str]) -> int:
    """Reads the command line and shows it."""
    from robustguide.plans.arrays import Plan
    from robustguide.plans.progress import tasks_of

    plan = Plan.read(Path(parser().parse_args(args).plan))
    tasks = tasks_of(plan)
    console = Console()
    console.print(bars(plan))
    counts = {
        state: [task for task in tasks if task.state == state]
        for state in ("done", "running", "queued", "failed", "missing")
    }
    told = ", ".join(f"{len(found)} {state}" for state, found in counts.items() if found)
    console.print(f"{plan.tasks} tasks: {told}", highlight=False)
    for task in [*counts["failed"], *counts["running"]][:SHOWN]:
        said = task.said.strip().splitlines() or [""]
        line = f"  task {task.number} {task.state}, {task.done} of {task.count}: {said[-1]}"
        console.print(line, highlight=False, markup=False)
    advise(plan, [task.number for task in tasks if task.state in ("failed", "missing")])
    return int(len(counts["done"]) < plan.tasks)


def advise(plan: "Plan", again: list[int]) -> None:
    """What to do next."""
    from robustguide.plans.arrays import ranges
    from robustguide.plans.batch import FIT, SAMPLE

    if again:
        script = plan.folder / (FIT if plan.stage == "fit" else SAMPLE)
        print(f"To send again: --array={','.join(ranges(again))}")
        if script.is_file():
            print(f"  sbatch --array={','.join(ranges(again))} {script} {plan.folder}")
        print("  or repeat the command of `robustguide submit`, which sends what is missing")
    elif not plan.missing():
        print(f"All is there: robustguide merge {plan.folder}")


def bars(plan: "Plan") -> Table:
    """A bar a setting."""
    from robustguide.plans.progress import made

    table = Table(box=None, show_header=False, padding=(0, 1))
    unit = "trainings" if plan.stage == "fit" else "images"
    for setting in plan.settings:
        there, count = made(plan, setting)
        bar = ProgressBar(total=count, completed=there, width=30)
        table.add_row(setting.name, bar, f"{there} of {count} {unit}")
    return table


def parser() -> ArgumentParser:
    """The arguments."""
    arguments = ArgumentParser(
        prog="robustguide status", description=__doc__, epilog=EXAMPLES, formatter_class=Formatter
    )
    arguments.add_argument("plan", type=str, metavar="PLAN", help="folder of the plan")
    return arguments
