"""Makes a plan of configurations, and sends it to Slurm or runs it here."""

import json
import os
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import lcm
from pathlib import Path

import yaml

from robustguide.files import whole
from robustguide.plans import batch
from robustguide.plans.arrays import (
    FILE,
    Plan,
    Setting,
    batch_size_of,
    chunk_of,
    ranges,
    refuse_taken,
    sha256,
    sweep,
)
from robustguide.plans.jobs import JobError, run_jobs
from robustguide.plans.progress import JOBS, jobs_of, tasks_of
from robustguide.plans.resolving import refuse_missing, resolved
from robustguide.plans.tasks import training, work


@dataclass(frozen=True)
class Wanted:
    """What is to be submitted.

    Attributes:
        stage: "test" for images, "fit" for trainings.
        configs: Files, the later ones over the earlier.
        folder: Of the plan.
        count: Images of each setting.
        first: Number of the first one.
        array: Tasks, and how many of them at a time, as "64%8"; trainings have one each.
        chunk: Images in a chunk; null leaves it to the plan.
        sweep: `key=value,value` of each axis.
        set: `key=value` for all settings.
    """

    stage: str
    configs: tuple[str, ...]
    folder: Path
    count: int = 0
    first: int = 0
    array: str | None = None
    chunk: int | None = None
    sweep: tuple[str, ...] = ()
    set: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cluster:
    """How scripts are filled in.

    Attributes:
        options: Of sbatch, by their long names.
        modules: For `module load`.
        container: Words that start a command inside of one.
        templates: Folder of the scripts; null is that of the repository.
    """

    options: Mapping[str, str | None] = field(default_factory=dict)
    modules: tuple[str, ...] = ()
    container: str | None = None
    templates: Path | None = None


def planned(wanted: Wanted) -> tuple[Plan, list[str]]:
    """The plan and the configuration of each setting; nothing is written.

    Raises:
        ValueError: For numbers or options that make no plan.
    """
    for change in wanted.set:
        key, equals, _ = change.removeprefix("--").partition("=")
        if not equals:
            raise ValueError(f"--set got {change!r}; expected KEY=VALUE.")
        refuse_taken(key)
    settings = sweep(wanted.sweep)
    texts = [
        resolved(wanted.stage, wanted.configs, (*wanted.set, *changes)) for _, changes in settings
    ]
    for text in texts:
        refuse_missing(text)
    made = tuple(
        Setting(name, changes, sha256(text.encode()))
        for (name, changes), text in zip(settings, texts, strict=True)
    )
    if wanted.stage == "fit":
        return Plan(wanted.folder, "fit", made, len(made)), texts
    if wanted.count < 1 or wanted.first < 0:
        raise ValueError(
            f"--num-samples is {wanted.count} and --first {wanted.first}; expected a number of "
            "images of 1 or more, and a first one of 0 or more."
        )
    tasks, _ = tasks_and_limit(wanted.array)
    chunk = chunk_of(wanted.count, tasks, lcm(*map(batch_size_of, texts)), wanted.chunk)
    most = len(made) * -(-wanted.count // chunk)
    plan = Plan(wanted.folder, "test", made, min(tasks, most), wanted.first, wanted.count, chunk)
    return plan, texts


def tasks_and_limit(array: str | None) -> tuple[int, str]:
    """Number of tasks, and Slurm's limit of those at a time, "" or "%8".

    Raises:
        ValueError: For something else.
    """
    found = re.fullmatch(r"([1-9]\d*)(%[1-9]\d*)?", array or "1")
    if found is None:
        raise ValueError(
            f"--array is {array!r}; expected a number of tasks, such as 64, or 64%8 for at most "
            "8 at a time."
        )
    return int(found[1]), found[2] or ""


def written(plan: Plan, texts: Sequence[str]) -> None:
    """Writes a plan, or finds it there.

    Raises:
        ValueError: Its folder holds another plan.
    """
    if (plan.folder / FILE).is_file():
        there = Plan.read(plan.folder)
        if there.told() != plan.told():
            names = [k for k, v in plan.told().items() if there.told()[k] != v and k != "digest"]
            raise ValueError(
                f"{plan.folder} holds another plan, which differs in {', '.join(names)}; give "
                "--folder another one. To go on with that plan, repeat the command that made it."
            )
        return
    plan.write(texts)


def scripts(plan: Plan, cluster: Cluster, config: str) -> dict[str, str]:
    """Texts of the batch scripts by name.

    Args:
        plan: Whose.
        cluster: How they are filled in.
        config: Of a training, which tells nodes and devices.

    Raises:
        ValueError: For devices that are no number.
    """
    options = dict(cluster.options)
    name = batch.SAMPLE
    if plan.stage == "fit":
        name, options = batch.FIT, places(config) | options
    one = {k: v for k, v in options.items() if k in ("account", "partition", "qos", "time")}
    found = {}
    for each, told in ((name, options), (batch.MERGE, one)):
        text = batch.template(each, cluster.templates)
        found[each] = batch.filled(text, told, cluster.modules, cluster.container)
    return found


def places(config: str) -> dict[str, str | None]:
    """Nodes, and processes and devices on each, of a training's configuration.

    Raises:
        ValueError: For devices that are no number, such as "auto": a script must name them.
    """
    trainer = yaml.safe_load(config)["trainer"]
    devices, nodes = trainer.get("devices"), trainer.get("num_nodes") or 1
    if not str(devices).isdecimal() or int(devices) < 1:
        raise ValueError(
            f"trainer.devices is {devices!r}; a batch script needs the number of devices on a "
            "node. Say --set trainer.devices=4, and trainer.num_nodes for several nodes."
        )
    found: dict[str, str | None] = {"nodes": str(nodes), "ntasks-per-node": str(devices)}
    if trainer.get("accelerator") in ("gpu", "cuda"):
        found["gpus-per-node"] = str(devices)
    return found


def send(plan: Plan, tasks: Sequence[int], limit: str) -> tuple[str, str]:
    """Sends tasks as an array, and the merge behind it.

    Returns:
        Numbers of both jobs.

    Raises:
        OSError: There is no sbatch.
        ValueError: It refused.
    """
    name = batch.FIT if plan.stage == "fit" else batch.SAMPLE
    commands = commands_of(plan, name, tasks, limit, "{job}")
    array = ask(commands[0])
    with whole(plan.folder / JOBS) as part:
        part.write_text(json.dumps([*jobs_of(plan), array]))
    return array, ask([word.replace("{job}", array) for word in commands[1]])


def commands_of(
    plan: Plan, name: str, tasks: Sequence[int], limit: str, job: str
) -> tuple[list[str], list[str]]:
    """What is said to Slurm: the array, and the merge when it has ended in whichever way."""
    logs = plan.folder / "logs"
    array = [f"--array={','.join(ranges(tasks))}{limit}", f"--output={logs}/%A_%a.out"]
    after = [f"--dependency=afterany:{job}", f"--output={logs}/merge_%j.out"]
    folder = [str(plan.folder)]
    return (
        batch.sbatch(plan.folder / name, folder, array),
        batch.sbatch(plan.folder / batch.MERGE, folder, after),
    )


def ask(command: Sequence[str]) -> str:
    """What sbatch answers: the number of a job.

    Raises:
        ValueError: It refused.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
    return done.stdout.strip().partition(";")[0]


def run_here(plan: Plan, workers: int, say: Callable[[str], None]) -> dict[int, str]:
    """Runs the tasks that have something left to do, without Slurm.

    Returns:
        What went wrong, by task; the others are done.
    """
    tasks, failures = plan.missing(), dict[int, str]()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

    def one(task: int) -> None:
        try:
            if plan.stage == "fit":
                train_here(plan, task)
            else:
                work(plan, task, say)
        except (JobError, OSError, ValueError) as error:
            failures[task] = str(error)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, tasks))
    return failures


def train_here(plan: Plan, task: int) -> None:
    """A training of a sweep; one that was stopped goes on from its newest checkpoint."""
    (unit,) = plan.of_task(task)
    jobs = [training(plan, unit)]
    run_jobs(jobs, plan.folder / "logs", 1, lambda *told: None)


def left(plan: Plan) -> list[int]:
    """Tasks to send: those that nobody has, and that are not done."""
    return [task.number for task in tasks_of(plan) if task.state in ("failed", "missing")]
