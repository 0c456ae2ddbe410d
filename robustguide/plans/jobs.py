"""Command lines that wait for each other, run side by side on one machine.

A server process imports the package once and forks each job, so a job starts at once and yet
with a clean state. Where there is no fork, each job imports for itself.
"""

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

# Whoever starts a process, multiprocessing asks all earlier ones for their exit codes, and each
# can be read once: of two threads the second would take a good end for a lost server (255).
CHILDREN = threading.Lock()


class JobError(ChildProcessError):
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
    process: multiprocessing.process.BaseProcess
    log: Path
    started: float


def run_jobs(
    jobs: Sequence[Job],
    logs: Path,
    workers: int,
    show: Callable[[str, str, float, bool], None],
    failures: dict[str, JobError] | None = None,
) -> dict[str, float]:
    """Runs all jobs, as many at a time as there are workers, each with its share of the cores.

    Args:
        jobs: Each after those that it needs.
        logs: Folder for what they print.
        workers: Processes at a time.
        show: Called with a job's name, the last line that it printed, the seconds it has run and
            whether it has ended well.
        failures: Takes the errors of jobs that fail and that no other one needs, by name, while
            the others go on. Without it the first failure ends all.

    Returns:
        Seconds that each job took which ended well.

    Raises:
        JobError: When one fails and failures are not taken; the others are ended.
    """
    logs.mkdir(parents=True, exist_ok=True)
    waiting, running, seconds = list(jobs), list[Running](), dict[str, float]()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    processes = forking()
    try:
        while waiting or running:
            for job in [j for j in waiting if seconds.keys() >= set(j.needs)]:
                if len(running) < workers:
                    running.append(start(job, logs, processes))
                    waiting.remove(job)
            if not running:
                names = ", ".join(job.name for job in waiting)
                raise JobError(f"These jobs wait for jobs that are not in the plan: {names}.")
            time.sleep(0.1)
            for one in list(running):
                lasted = time.monotonic() - one.started
                with CHILDREN:
                    ended = not one.process.is_alive()
                if ended:
                    running.remove(one)
                    ended = finish(one, failures)
                if ended:
                    seconds[one.job.name] = round(lasted, 1)
                show(one.job.name, last_line(one.log), lasted, ended)
    finally:
        for one in running:
            one.process.terminate()
    return seconds


def forking() -> multiprocessing.context.BaseContext:
    """A way to start processes that have imported the package already, where there is one."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["robustguide.main"])
    return context


def start(job: Job, logs: Path, processes: multiprocessing.context.BaseContext) -> Running:
    """Starts a job, with its output in a log."""
    log = logs / f"{job.name}.log"
    log.write_text("")
    process = processes.Process(target=logged, args=(job.args, str(log)), name=job.name)  # type: ignore[attr-defined]
    with CHILDREN:
        process.start()
    return Running(job, process, log, time.monotonic())


def logged(args: Sequence[str], log: str) -> None:
    """In the job's process: what `python -m robustguide` does, printing into a file."""
    with open(log, "wb") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    multiprocessing.set_start_method(None, force=True)  # not the server's: a job has its own ways
    sys.argv = ["robustguide", *args]
    import_module("robustguide.__main__").entry()


def finish(one: Running, failures: dict[str, JobError] | None) -> bool:
    """Whether a job that is over ended well; raises where it did not and no failures are taken."""
    one.process.join()
    if not one.process.exitcode:
        return True
    tail = "\n".join(one.log.read_text(errors="replace").splitlines()[-15:])
    command = " ".join(one.job.args)
    error = JobError(
        f"`robustguide {command}` ended with exit code {one.process.exitcode}; "
        f"see {one.log}:\n{tail}"
    )
    if failures is None:
        raise error
    failures[one.job.name] = error
    return False


def last_line(log: Path) -> str:
    """The last line that a job has printed whole or in part."""
    with open(log, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 2000))
        lines = file.read().decode(errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
