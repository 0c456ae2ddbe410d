"""Several methods on the same seeds, in one table with intervals over blocks of seeds."""

import os
import sys
from pathlib import Path

from jsonargparse import ArgumentParser
from rich.console import Console

from robustguide.commands.formatter import Formatter
from robustguide.plans import JobDisplay, JobError, run_jobs
from robustguide.plans.ablation import Ablation, named

EXAMPLES = """Every CONFIG is a method and is run as
`robustguide test --config BASE --config CONFIG`, for each block of seeds.
Runs that have results are not run again, so a command that was stopped goes on
when it is repeated. Results of another configuration are refused.

examples:
  robustguide ablate configs/test/digits_unguided.yaml configs/test/digits_robust_guided.yaml
  robustguide ablate configs/test/digits_*guided.yaml --count 300 --blocks 5 --first 1000000
  robustguide ablate mine.yaml yours.yaml --base configs/overlay/digits_generation.yaml \\
    --set model.watched_steps=5 trainer.accelerator=gpu --folder runs/mine --workers 1

exit code: 0 when all runs ended well, 1 when one failed
"""


def run(args: list[str]) -> int:
    """Reads the command line, runs what is missing and shows the table."""
    options = parser().parse_args(args)
    if options.workers < 1:
        raise ValueError(f"--workers is {options.workers}; expected 1 or more.")
    plan = Ablation(
        named(options.configs),
        tuple(map(Path, options.base)),
        Path(options.folder),
        count=options.count,
        blocks=options.blocks,
        first=options.first,
        changes=tuple(options.set),
    )
    jobs, failures = plan.missing(), dict[str, JobError]()
    plan.note()
    with JobDisplay(jobs) as show:
        run_jobs(jobs, plan.folder / "logs", options.workers, show, failures)
    failed = plan.failed(failures)
    done = [method for method in plan.methods if method not in failed]
    if done:
        report(plan, done)
    for method, error in failed.items():
        print(f"\nrobustguide: {method}: {error}", file=sys.stderr)
    return int(bool(failed))


def parser() -> ArgumentParser:
    """The arguments."""
    arguments = ArgumentParser(
        prog="robustguide ablate", description=__doc__, epilog=EXAMPLES, formatter_class=Formatter
    )
    arguments.add_argument(
        "configs", nargs="+", type=str, metavar="CONFIG", help="a method, named by its file"
    )
    arguments.add_argument(
        "--base",
        nargs="+",
        type=str,
        default=["configs/overlay/digits_generation.yaml"],
        metavar="FILE",
        help="configurations that all methods share, read first",
    )
    arguments.add_argument("--blocks", type=int, default=3, help="blocks of seeds, at least 3")
    arguments.add_argument("--count", type=int, default=1000, help="images in a block")
    arguments.add_argument("--first", type=int, default=0, help="number of the first image")
    arguments.add_argument("--folder", type=str, default="runs/ablation", help="for all files")
    arguments.add_argument(
        "--workers", type=int, default=min(2, os.cpu_count() or 1), help="processes"
    )
    arguments.add_argument(
        "--set",
        nargs="+",
        action="extend",
        type=str,
        default=[],
        metavar="KEY=VALUE",
        help="options that all methods get",
    )
    return arguments


def report(plan: Ablation, done: list[str]) -> None:
    """Writes and prints the table of the methods whose blocks are all there."""
    from robustguide.report import ablation  # imports torch, which --help does not need

    runs = {method: plan.run_folders(method) for method in done}
    results = {
        "methods": ablation.collect(runs),
        "level": ablation.LEVEL,
        "blocks": plan.blocks,
        "count": plan.count,
        "first": plan.first,
        "configs": {method: str(plan.methods[method].configs[0]) for method in done},
        "base": list(map(str, plan.base)),
        "set": list(plan.changes),
    }
    ablation.write(plan.folder, results, runs)
    for part in ("metrics", "cost"):
        Console().print(ablation.table(results, [part]).text())
    print(f"Table: {plan.folder}/ablation.md  Numbers: {plan.folder}/ablation.json")
