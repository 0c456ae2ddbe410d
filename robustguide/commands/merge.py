"""The chunks of a plan as one result: the numbers of one run of all images."""

import sys
from pathlib import Path

from jsonargparse import ArgumentParser
from rich.console import Console

from robustguide.commands.formatter import Formatter

EXAMPLES = """Looks first whether each image is there exactly once. Of each setting it
leaves results.json and the pictures of a run of `robustguide test`, and the
images as shards in samples/; of all together merged.md and merged.json.

examples:
  robustguide merge runs/array
  robustguide score runs/array/all/samples --protocol adm --reference real.npz

exit code: 0 when all is put together, 1 when something is missing
"""


def run(args: list[str]) -> int:
    """Reads the command line, measures and shows the table."""
    given = parser().parse_args(args)
    from robustguide.plans import JobDisplay
    from robustguide.plans.arrays import Plan
    from robustguide.plans.merging import Unfinished, job, merge

    plan = Plan.read(Path(given.plan))
    jobs = [job(plan, setting) for setting in plan.settings] if plan.stage == "test" else []
    try:
        with JobDisplay(jobs) as show:
            found = merge(plan, given.workers, show)
    except Unfinished as error:
        print(f"robustguide: {error}", file=sys.stderr)
        return 1
    Console().print(found.narrow())
    print(f"Table: {plan.folder}/merged.md  Numbers: {plan.folder}/*/results.json")
    return 0


def parser() -> ArgumentParser:
    """The arguments."""
    arguments = ArgumentParser(
        prog="robustguide merge", description=__doc__, epilog=EXAMPLES, formatter_class=Formatter
    )
    arguments.add_argument("plan", type=str, metavar="PLAN", help="folder of the plan")
    arguments.add_argument("--workers", type=int, default=1, help="settings at a time")
    return arguments
