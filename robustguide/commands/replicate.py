"""Tables of papers again, on Fashion-MNIST: runs the cells that are missing and judges all."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from robustguide.commands.formatter import Formatter
from robustguide.plans import JobDisplay, JobError, run_jobs

if TYPE_CHECKING:  # imports torch, which --help does not need
    from robustguide.plans.replication import Replication
    from robustguide.report.replication import Verdict

EXAMPLES = """A cell is a configuration on blocks of seeds; its results.json is kept, and a cell
that has one is not run again. So a command that was stopped goes on when it is repeated. First it
counts what is left, by the FLOPs of `robustguide cost` and a batch that it times here, and begins
only if that takes less than --hours. --page also writes the tables into a page, with what the
paper found.

examples:
  robustguide replicate --list
  robustguide replicate --cost
  robustguide replicate robust free
  robustguide replicate --page docs/replication.md
  robustguide replicate --plan mine/plan.yaml --folder runs/mine

exit code: 0 when all cells that were asked for have results, 1 otherwise
"""


def run(args: list[str]) -> int:
    """Reads the command line, runs what is missing and judges."""
    given = parser().parse_args(args)
    if given.workers < 1:
        raise ValueError(f"--workers is {given.workers}; expected 1 or more.")
    from robustguide.plans.replication import read

    whole = read(Path(given.plan), Path(given.folder), given.blocks)
    plan = whole.chosen(given.tables)
    if given.list:
        for name, table in plan.tables.items():
            print(f"{name:<14} {table.title}. {table.source}")
        return 0
    jobs, failures = plan.runs.missing(), dict[str, JobError]()
    there = len(plan.runs.pairs()) - len(jobs)
    print(f"{there} of {len(plan.runs.pairs())} runs have results")
    if jobs and not given.judge:
        hours = estimated(plan)
        if given.cost:
            return 0
        if hours > given.hours:
            raise ValueError(
                f"What is left takes about {hours:.1f} hours, more than --hours={given.hours:g}; "
                "give a larger bound, or fewer tables."
            )
        plan.runs.note()
        with JobDisplay(jobs) as show:
            run_jobs(jobs, plan.runs.folder / "logs", given.workers, show, failures)
    for method, error in plan.runs.failed(failures).items():
        print(f"\nrobustguide: {method}: {error}", file=sys.stderr)
    judge(plan, given)
    return int(bool(plan.runs.left()))


def parser() -> ArgumentParser:
    """The arguments."""
    arguments = ArgumentParser(
        prog="robustguide replicate",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=Formatter,
    )
    add = arguments.add_argument
    add("tables", nargs="*", type=str, metavar="TABLE", default=[], help="of --list; none are all")
    add("--plan", type=str, default="docs/replication/plan.yaml", metavar="FILE", help="YAML")
    add("--folder", type=str, default="docs/replication", help="for results and all other files")
    add("--blocks", type=int, default=None, help="of seeds, at least 3; the plan's")
    add("--workers", type=int, default=min(2, os.cpu_count() or 1), help="processes")
    add("--hours", type=float, default=12.0, help="at most, of what is left")
    add("--page", type=str, default=None, metavar="FILE", help="write the tables into it")
    add("--list", action="store_true", help="list the tables")
    add("--cost", action="store_true", help="only tell what is left and how long it takes")
    add("--judge", action="store_true", help="run nothing, judge what is there")
    return arguments


def estimated(plan: "Replication") -> float:
    """Prints FLOPs and hours of the runs that are left; the hours."""
    from robustguide.commands.cost import scaled
    from robustguide.plans.replication import cost_of_left

    found = cost_of_left(plan.runs)
    ways = []
    if found.flops:
        ways.append(
            f"{scaled(found.flops)}FLOP at the {scaled(found.speed)}FLOP/s of a batch of the "
            "first cell, measured here"
        )
    if found.timed:
        ways.append("a batch each of the cells in which images decide what is evaluated")
    print(
        f"about {found.hours:.1f} hours of sampling are left, by {', and '.join(ways)}; start-up "
        "and features come on top"
    )
    return found.hours


def judge(plan: "Replication", given: Namespace) -> None:
    """Prints the verdicts, and writes the page if one is asked for."""
    from robustguide.report import replication

    folders = {cell: plan.runs.done(cell) for cell in plan.runs.methods}
    if given.page:
        page = Path(given.page)
        judged = replication.write(
            page, page.parent / "images", plan.tables, folders, plan.runs.blocks
        )
        print(f"Page: {page}")
    else:
        found = replication.numbers({cell: each for cell, each in folders.items() if each})
        judged = {name: replication.verdicts(table, found) for name, table in plan.tables.items()}
    show(judged)


def show(judged: "Mapping[str, Sequence[Verdict]]") -> None:
    """One line a claim."""
    from robustguide.report.page import Table

    rows = []
    for name, verdicts in judged.items():
        for each in verdicts:
            off = "" if each.mean is None else f"{each.mean:+.3g} ± {each.half_width:.2g}"
            rows.append([name, str(each.claim), each.word, off])
    Console().print(Table(("table", "claim", "verdict", "difference"), rows).narrow())
