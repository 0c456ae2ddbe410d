"""Command lines that wait for each other, run side by side on one machine."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


class JobError(RuntimeError):
    """A job failed; the message ends with the last lines of its log."""


@dataclass(frozen=True)
class Job:
    """One run of `robustguide`.

    Attributes:
        name: Names its log.
        args: Words after `robustguide`.
        needs: Names of jobs that must have ended.
    """

    name: str
    args: tuple[str, ...]
    needs: tuple[str, ...] = ()


@dataclass
class Running:
    """A job under way."""

    job: Job
    process: subprocess.Popen[bytes]
    log: Path
    started: float


def run_jobs(
    jobs: Sequence[Job],
    logs: Path,
    workers: int,
    show: Callable[[str, str, float, bool], None],
) -> dict[str, float]:
    """Runs all jobs, as many at a time as there are workers, each with its share of the cores.

    Args:
        jobs: Each after those that it needs.
        logs: Folder for what they print.
        workers: Processes at a time.
        show: Called with a job's name, the last line that it printed, the seconds it has run and
            whether it has ended.

    Returns:
        Seconds that each job took.

    Raises:
        JobError: When one fails; the others are ended.
    """
    logs.mkdir(parents=True, exist_ok=True)
    waiting, running, seconds = list(jobs), list[Running](), dict[str, float]()
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    try:
        while waiting or running:
            for job in [j for j in waiting if seconds.keys() >= set(j.needs)]:
                if len(running) < workers:
                    running.append(start(job, logs, threads))
                    waiting.remove(job)
            if not running:
                names = ", ".join(job.name for job in waiting)
                raise JobError(f"These jobs wait for jobs that are not in the plan: {names}.")
            time.sleep(0.1)
            for one in list(running):
                lasted = time.monotonic() - one.started
                ended = one.process.poll() is not None
                if ended:
                    running.remove(one)
                    finish(one)
                    seconds[one.job.name] = round(lasted, 1)
                show(one.job.name, last_line(one.log), lasted, ended)
    finally:
        for one in running:
            one.process.terminate()
    return seconds


def start(job: Job, logs: Path, threads: str) -> Running:
    """Starts a job, with its output in a log."""
    log = logs / f"{job.name}.log"
    environment = {"OMP_NUM_THREADS": threads, **os.environ, "PYTHONUNBUFFERED": "1"}
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "robustguide", *job.args],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    return Running(job, process, log, time.monotonic())


def finish(one: Running) -> None:
    """Raises for a job that failed."""
    code = one.process.wait()
    if code:
        tail = "\n".join(one.log.read_text(errors="replace").splitlines()[-15:])
        command = " ".join(one.job.args)
        raise JobError(
            f"`robustguide {command}` ended with exit code {code}; see {one.log}:\n{tail}"
        )


def last_line(log: Path) -> str:
    """The last line that a job has printed whole or in part."""
    with open(log, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 2000))
        lines = file.read().decode(errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
