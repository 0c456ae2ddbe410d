"""Puts what the tasks of a plan made together: one result a setting, and a table of all."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from robustguide.data.parts import SAMPLES
from robustguide.files import whole
from robustguide.plans.arrays import Plan, Setting, ranges
from robustguide.plans.jobs import Job, run_jobs
from robustguide.plans.tasks import UNDER_WAY, is_alive
from robustguide.report.ablation import markdown
from robustguide.report.page import Table

TABLE = "merged"


class Unfinished(ValueError):
    """Something that tasks are to make is not there."""


def merge(
    plan: Plan, workers: int, show: Callable[[str, str, float, bool], None] = lambda *told: None
) -> Table:
    """Measures the images of each setting as one run of all of them would.

    Args:
        plan: All of whose units are there.
        workers: Processes at a time.
        show: See `run_jobs`.

    Returns:
        Numbers by setting; they are also in `merged.md` and `merged.json` in the plan's folder.

    Raises:
        Unfinished: Naming the tasks to send again.
        JobError: Chunks do not fit together.
    """
    refuse_unfinished(plan)
    if plan.stage == "test":
        for setting in plan.settings:
            shelve(plan, setting)
        run_jobs(
            [job(plan, setting) for setting in plan.settings], plan.folder / "logs", workers, show
        )
    results = {setting.name: read(plan.folder / setting.name) for setting in plan.settings}
    found = table(plan, results)
    with whole(plan.folder / f"{TABLE}.json") as part:
        part.write_text(json.dumps(results, indent=1))
    with whole(plan.folder / f"{TABLE}.md") as part:
        part.write_text(markdown(found))
    return found


def refuse_unfinished(plan: Plan) -> None:
    """Refuses to measure a part of what was asked for.

    Raises:
        Unfinished: Naming what is missing, and the tasks to send again.
    """
    missing = [unit for unit in plan.units if not unit.is_done]
    if not missing:
        return
    names = ", ".join(f"{unit.setting.name}/{unit.folder.name}" for unit in missing[:5])
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    raise Unfinished(
        f"{len(missing)} of {len(plan.units)} units of {plan.folder} are missing: {names}{more}. "
        f"Send their tasks again: --array={','.join(ranges(plan.missing()))} "
        f"(`robustguide status {plan.folder}` tells more)."
    )


def job(plan: Plan, setting: Setting) -> Job:
    """The command that measures the chunks of a setting."""
    words = (
        *("test", "--config", str(plan.config(setting))),
        f"--data.first={plan.first}",
        f"--data.count={plan.count}",
        f"--data.parts={plan.parts(setting)}",
        f"--trainer.default_root_dir={plan.folder / setting.name}",
        *("--trainer.devices=1", "--trainer.num_nodes=1"),
    )
    return Job(f"merge_{setting.name}", words)


def shelve(plan: Plan, setting: Setting) -> None:
    """Puts the images of all chunks into one folder of shards, and clears what dead tasks left."""
    shelf = plan.folder / setting.name / "samples"
    shelf.mkdir(parents=True, exist_ok=True)
    for unit in plan.units:
        if unit.setting == setting:
            place = shelf / f"{unit.folder.name}.tar"
            if not place.exists():
                link(unit.folder / SAMPLES, place)
    for left in plan.parts(setting).glob(f".*{UNDER_WAY}"):
        if not is_alive(left.name.removesuffix(UNDER_WAY).partition(".task")[2].partition(".")[2]):
            shutil.rmtree(left, ignore_errors=True)


def link(file: Path, place: Path) -> None:
    """The same file under another name; a copy where the file system has no links."""
    try:
        os.link(file, place)
    except OSError:
        with whole(place) as part:
            shutil.copyfile(file, part)


def read(folder: Path) -> dict[str, Any]:
    """Metrics, cost and work of a run."""
    told = json.loads((folder / "results.json").read_text())
    return {name: told[name] for name in ("metrics", "cost", "work")}


def table(plan: Plan, results: dict[str, dict[str, Any]]) -> Table:
    """A row a setting."""
    names = list(dict.fromkeys(name for each in results.values() for name in each["metrics"]))
    rows = [
        [setting.name, *(cell(results[setting.name]["metrics"].get(name)) for name in names)]
        for setting in plan.settings
    ]
    return Table(["setting", *names], rows)


def cell(fact: dict[str, Any] | None) -> str:
    """A number with its interval."""
    if fact is None or fact.get("value") is None:
        return "-"
    return f"{fact['value']:.4g}" + "".join(limits(fact))


def limits(fact: dict[str, Any]) -> Iterator[str]:
    """Of a number, where they are known."""
    found = fact.get("interval") or fact.get("limits")
    if found:
        low, high = (each if isinstance(each, str) else f"{each:.4g}" for each in found)
        yield f" ({low} to {high})"
