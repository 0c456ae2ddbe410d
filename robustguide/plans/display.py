"""Shows jobs that run side by side: a bar for each on a terminal, lines elsewhere."""

import re
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from robustguide.plans.jobs import Job

PERCENT = re.compile(r"(\d+)%")


class JobDisplay(AbstractContextManager["JobDisplay"]):
    """Called with a job's name, its last line and its seconds, see `run_jobs`.

    Args:
        jobs: All that will run.
        silence: Seconds between two lines of one job, where there is no terminal.
    """

    def __init__(self, jobs: Sequence[Job], silence: float = 10.0) -> None:
        self.console = Console()
        self.silence = silence
        self.printed: dict[str, tuple[float, str]] = {}
        self.tasks: dict[str, TaskID] = {}
        self.progress: Progress | None = None
        if self.console.is_terminal:
            columns = ("{task.description:<16}", BarColumn(), "{task.percentage:>3.0f}%")
            self.progress = Progress(
                *columns,
                TimeElapsedColumn(),
                TextColumn("{task.fields[line]}"),
                console=self.console,
            )
            self.tasks = {
                job.name: self.progress.add_task(job.name, total=100, start=False, line="waits")
                for job in jobs
            }

    def __enter__(self) -> "JobDisplay":
        """Starts drawing."""
        if self.progress is not None:
            self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Gives the terminal back."""
        if self.progress is not None:
            self.progress.stop()

    def __call__(self, name: str, line: str, seconds: float, ended: bool = False) -> None:
        """Shows where a job is."""
        percent = PERCENT.search(line)
        if self.progress is not None:
            task = self.tasks[name]
            if not self.progress.tasks[task].started:
                self.progress.start_task(task)
            done = 100.0 if ended else float(percent[1]) if percent else None
            self.progress.update(task, completed=done, line="done" if ended else line[:60])
            return
        now = time.monotonic()
        then, before = self.printed.get(name, (-self.silence, ""))
        if ended or (line != before and now - then >= self.silence and percent):
            self.printed[name] = now, line
            print(f"{name:<16} {seconds:6.1f} s  {'done' if ended else line[:80]}", flush=True)
