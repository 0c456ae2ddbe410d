"""The main job on digits, from nothing to a report: two classifiers, a denoiser, four methods."""

import os
import time
from pathlib import Path

from jsonargparse import ArgumentParser
from rich.console import Console

from robustguide.commands.formatter import Formatter
from robustguide.plans import JobDisplay, run_jobs
from robustguide.plans.tour import configure, scale_jobs, tour_jobs

EXAMPLES = """examples:
  robustguide demo
  robustguide demo --seed 1 --folder runs/demo1
  robustguide demo --choose-scales    (sweeps the guidance scales of an ended demo)
"""


def run(args: list[str]) -> int:
    """Reads the command line and runs the demo."""
    parser = ArgumentParser(
        prog="robustguide demo", description=__doc__, epilog=EXAMPLES, formatter_class=Formatter
    )
    parser.add_argument("--folder", type=str, default="runs/demo", help="where all files go")
    parser.add_argument("--seed", type=int, default=0, help="of the networks and their training")
    parser.add_argument("--configs", type=str, default="configs", help="folder of configurations")
    parser.add_argument(
        "--workers", type=int, default=min(2, os.cpu_count() or 1), help="processes"
    )
    parser.add_argument(
        "--choose-scales", action="store_true", help="sweep guidance scales on validation seeds"
    )
    options = parser.parse_args(args)
    started, folder = time.monotonic(), Path(options.folder)
    configs = configure(Path(options.configs), folder)
    jobs = scale_jobs(configs) if options.choose_scales else tour_jobs(configs, options.seed)
    with JobDisplay(jobs) as show:
        seconds = run_jobs(jobs, folder / "logs", options.workers, show)
    from robustguide.report import tour  # imports torch, which --help does not need

    if options.choose_scales:
        Console().print(tour.scales(folder, [job.name for job in jobs]).text())
        return 0
    results = tour.collect(folder, seconds)
    page = tour.write_report(folder, results)
    Console().print(tour.summary(results).text())
    spent = f"{time.monotonic() - started:.0f} s in all"
    print(f"{spent}. Report: {page}  Numbers: {folder}/results.json")
    return 0
