"""Sends images in array tasks, or a sweep of trainings, to Slurm; or runs them here.

The plan is written first: which images each task makes, with the whole configuration of each
setting. The merge is sent behind the array. The same command again sends what is missing.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from robustguide.commands.formatter import Formatter

if TYPE_CHECKING:  # imports what --help does not need
    from robustguide.plans.arrays import Plan
    from robustguide.plans.submission import Cluster

EXAMPLES = """A task makes its images in chunks; what is there is not made again. So tasks
may be killed and sent again as often as needed, and every image counts once.

examples:
  robustguide submit configs/overlay/adm256.yaml configs/test/mine.yaml \\
    --num-samples 50000 --array 64%16 --folder runs/adm256 --gres gpu:1 --time 08:00:00
  robustguide submit configs/overlay/digits_generation.yaml \\
    configs/test/digits_robust_guided.yaml --num-samples 2000 --array 4 --local 2 \\
    --set data.batch_size=250 --sweep model.guidance.robust.scale=3,6,12
  robustguide submit fit configs/fit/imagenet128_robust.yaml --set trainer.devices=8 \\
    --sweep model.attack.radius=0.25,0.5,1 --partition gpu --modules cuda/12.4
  robustguide submit CONFIG --num-samples 50000 --array 64 --print

exit code: 0 when all was sent (or ran here), 1 when something failed
"""


def run(args: list[str]) -> int:
    """Reads the command line; writes the plan, and sends or runs it."""
    given = parser().parse_args(args)
    stage, configs = ("fit", given.words[1:]) if given.words[0] == "fit" else ("test", given.words)
    if not configs:
        raise ValueError("Name a configuration: robustguide submit fit CONFIG ...")
    from robustguide.plans.submission import Wanted, planned, scripts, tasks_and_limit, written

    folder = Path(given.folder or f"runs/{Path(configs[-1]).stem}_array")
    wanted = Wanted(
        stage,
        tuple(configs),
        folder,
        given.num_samples or 0,
        given.first,
        given.array,
        given.chunk,
        tuple(given.sweep),
        tuple(given.set),
    )
    plan, texts = planned(wanted)
    limit = tasks_and_limit(given.array)[1]
    if given.local is not None:
        written(plan, texts)
        return here(plan, given.local)
    texts_of_scripts = scripts(plan, cluster_of(given), texts[0])
    if given.print:
        show(plan, texts_of_scripts, limit)
        return 0
    written(plan, texts)
    return there(plan, texts_of_scripts, limit)


def here(plan: "Plan", workers: int) -> int:
    """Runs all of it on this machine."""
    from robustguide.commands import merge
    from robustguide.plans.submission import run_here

    if workers < 1:
        raise ValueError(f"--local is {workers}; expected 1 or more processes.")
    failures = run_here(plan, workers, lambda line: print(line, flush=True))
    for task, error in sorted(failures.items()):
        print(f"robustguide: task {task}: {error}", file=sys.stderr)
    return 1 if failures else merge.run([str(plan.folder), "--workers", str(workers)])


def there(plan: "Plan", texts: dict[str, str], limit: str) -> int:
    """Sends what nobody has."""
    from robustguide.plans import batch
    from robustguide.plans.submission import left, send

    (plan.folder / "logs").mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        batch.write(plan.folder / name, text)
    tasks = left(plan)
    if not tasks:
        print(f"Nothing is left to send; see `robustguide status {plan.folder}`.")
        return 0
    array, merge = send(plan, tasks, limit)
    print(f"Sent {len(tasks)} of {plan.tasks} tasks as job {array}, the merge as {merge}.")
    print(f"  robustguide status {plan.folder}")
    return 0


def show(plan: "Plan", texts: dict[str, str], limit: str) -> None:
    """Prints what would be sent."""
    from robustguide.plans.submission import commands_of

    for name, text in texts.items():
        print(f"# --- {plan.folder / name}\n{text}")
    images = f"{plan.count} images in chunks of {plan.chunk}" if plan.count else "trainings"
    print(f"# --- {len(plan.settings)} settings of {images}, {plan.tasks} tasks; then")
    for command in commands_of(plan, next(iter(texts)), range(plan.tasks), limit, "JOB"):
        print(" ".join(command))


def cluster_of(given: Namespace) -> "Cluster":
    """How scripts are filled in."""
    from robustguide.plans.submission import Cluster

    options: dict[str, str | None] = {}
    for word in given.slurm:
        name, _, value = word.removeprefix("--").partition("=")
        options[name] = value
    for name in ("account", "partition", "time", "gres"):
        if given[name] is not None:
            options[name] = given[name]
    templates = Path(given.templates) if given.templates else None
    return Cluster(options, tuple(given.modules), given.container, templates)


def parser() -> ArgumentParser:
    """The arguments."""
    arguments = ArgumentParser(
        prog="robustguide submit", description=__doc__, epilog=EXAMPLES, formatter_class=Formatter
    )
    add = arguments.add_argument
    add("words", nargs="+", type=str, metavar="CONFIG", help="configurations; `fit` before trains")
    add("--num-samples", type=int, metavar="N", help="images of each setting")
    add("--first", type=int, default=0, help="number of the first image")
    add("--array", type=str, metavar="TASKS[%LIMIT]", help="tasks, and how many at a time")
    add("--chunk", type=int, help="images in a chunk, a multiple of data.batch_size")
    many: Any = {"nargs": "+", "action": "extend", "type": str, "default": []}
    add("--sweep", metavar="KEY=V1,V2", help="settings: all combinations of values", **many)
    add("--set", metavar="KEY=VALUE", help="options that all settings get", **many)
    add("--folder", type=str, help="of the plan and all that comes of it")
    add("--local", type=int, metavar="N", help="run it here, N tasks at a time, without Slurm")
    add("--print", action="store_true", help="print the scripts and commands, and write nothing")
    for name in ("account", "partition", "time", "gres"):
        add(f"--{name}", type=str, help="for sbatch")
    add("--slurm", metavar="OPTION=VALUE", help="other options of sbatch", **many)
    add("--modules", metavar="MODULE", help="for `module load`", **many)
    add("--container", type=str, help='words before the command: "apptainer exec --nv image.sif"')
    add("--templates", type=str, metavar="FOLDER", help="batch scripts of your own")
    return arguments
