"""How far something is: a bar on a terminal, a line now and then in a log file."""

import math
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as RichProgress
from rich.table import Column

Metrics = Mapping[str, Any]
WIDTH = 7  # of the longest name, so that the lines of a log stand below each other


@dataclass
class Count:
    """How much is done.

    Attributes:
        name: Of the run.
        unit: What is counted.
        total: How many there will be, where that is known.
        is_whole_run: False for a validation within training.
        first: How many were done before this process began.
        done: How many are done.
        started: Time of the start.
        shown: Time and count when it was last shown.
    """

    name: str
    unit: str
    total: int | None
    is_whole_run: bool = True
    first: int = 0
    done: int = 0
    started: float = field(default_factory=time.monotonic)
    shown: tuple[float, int] = (-math.inf, -1)

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.started

    @property
    def rate(self) -> float | None:
        """Per second, in this process."""
        new, seconds = self.done - self.first, self.seconds
        return new / seconds if new > 0 and seconds > 0 else None

    @property
    def left(self) -> float | None:
        """Seconds to go."""
        if self.total is None or self.rate is None:
            return None
        return max(self.total - self.done, 0) / self.rate

    def now_shown(self) -> None:
        """Notes time and count."""
        self.shown = time.monotonic(), self.done


class Display(ABC):
    """Where counts are shown."""

    @abstractmethod
    def start(self, count: Count) -> None:
        """A count begins."""

    @abstractmethod
    def is_due(self, count: Count) -> bool:
        """Whether it is to be shown again; asked after every batch, so it must cost nothing."""

    @abstractmethod
    def show(self, count: Count, metrics: Metrics) -> None:
        """Shows where it is."""

    @abstractmethod
    def end(self, count: Count, metrics: Metrics) -> None:
        """It is complete."""

    @abstractmethod
    def stop(self, count: Count) -> None:
        """It ends early."""

    def close(self) -> None:  # noqa: B027  (not every display has something to put away)
        """The last one has ended."""


class Lines(Display):
    """Single lines of plain text, flushed, on whatever is standard output by then."""

    longest_silence = 600.0

    def __init__(self, silence: float, file: TextIO | None = None) -> None:
        self.silence, self.file = silence, file

    def start(self, count: Count) -> None:
        """A line, unless it is a part of a run."""
        if count.is_whole_run:
            self._write(count, {})
        count.now_shown()

    def is_due(self, count: Count) -> bool:
        """After a tenth, or after silence; the last line is that of the end."""
        time_shown, done = count.shown
        if count.done == count.total:
            return False
        if count.is_whole_run and tenths(count.done, count) > tenths(done, count):
            return True
        patience = min(max(self.silence, count.seconds / 20), self.longest_silence)
        return time.monotonic() - time_shown >= patience

    def show(self, count: Count, metrics: Metrics) -> None:
        """A line."""
        self._write(count, metrics)
        count.now_shown()

    def end(self, count: Count, metrics: Metrics) -> None:
        """A line, unless it is a part of a run."""
        if count.is_whole_run:
            self._write(count, metrics, f"{clock(count.seconds)} in all")

    def stop(self, count: Count) -> None:
        """A line that says so."""
        if count.is_whole_run:
            self._write(count, {}, f"stopped after {clock(count.seconds)}")

    def _write(self, count: Count, metrics: Metrics, last: str = "") -> None:
        print(line(count, metrics, last), file=self.file or sys.stdout, flush=True)


class Bars(Display):
    """Bars that rich draws."""

    def __init__(self, refresh: float, console: Console | None = None) -> None:
        self.refresh = refresh
        self.tasks: dict[int, TaskID] = {}
        narrow = Column(no_wrap=True, overflow="ellipsis")
        self.bars = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20, table_column=Column(min_width=10)),
            TextColumn("{task.fields[text]}", markup=False, table_column=narrow),
            console=console or Console(file=sys.stdout),
            auto_refresh=False,  # a thread would draw while others print
        )
        self.bars.start()

    def start(self, count: Count) -> None:
        """One more bar."""
        self.tasks[id(count)] = self.bars.add_task(
            count.name, total=count.total, completed=count.done, text=numbers(count, {})
        )
        self.bars.refresh()
        count.now_shown()

    def is_due(self, count: Count) -> bool:
        """A few times a second."""
        return time.monotonic() - count.shown[0] >= self.refresh

    def show(self, count: Count, metrics: Metrics) -> None:
        """Moves the bar."""
        self._draw(count, numbers(count, metrics))

    def end(self, count: Count, metrics: Metrics) -> None:
        """The bar stays if it was a whole run."""
        self._draw(count, numbers(count, metrics, f"{clock(count.seconds)} in all"))
        task = self.tasks.pop(id(count))
        if not count.is_whole_run:
            self.bars.remove_task(task)

    def stop(self, count: Count) -> None:
        """The bar stays where it is."""
        self._draw(count, numbers(count, {}, f"stopped after {clock(count.seconds)}"))

    def close(self) -> None:
        """Gives the terminal back."""
        self.bars.stop()

    def _draw(self, count: Count, text: str) -> None:
        self.bars.update(self.tasks[id(count)], completed=count.done, text=text, refresh=True)
        count.now_shown()


def tenths(done: int, count: Count) -> int:
    """How many tenths of the total that is."""
    return 10 * done // count.total if count.total else 0


def line(count: Count, metrics: Metrics, last: str = "") -> str:
    """`fit      300/600 steps   50%  12.3 it/s  0:24 left  train/loss=1.52`."""
    return f"{count.name:<{WIDTH}}  {numbers(count, metrics, last)}"


def numbers(count: Count, metrics: Metrics, last: str = "") -> str:
    """All that a line says after the name, `last` in place of the time left."""
    parts = [f"{count.done} {count.unit}"]
    if count.total is not None:
        done = f"{count.done:>{len(str(count.total))}}"
        parts = [f"{done}/{count.total} {count.unit}", f"{100 * count.done // count.total:3d}%"]
    if count.rate is not None:
        parts.append(speed(count.rate))
    if last or count.left is not None:
        parts.append(last or f"{clock(count.left or 0)} left")
    return "  ".join([*parts, *(f"{name}={short(value)}" for name, value in metrics.items())])


def short(value: object) -> str:
    """A metric in four digits, or as text of one line."""
    return f"{value:.4g}" if isinstance(value, float) else " ".join(str(value).split())


def speed(rate: float) -> str:
    """Steps or batches a second, or seconds each where they take longer."""
    return f"{rate:.1f} it/s" if rate >= 1 else f"{1 / rate:.1f} s/it"


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, `0:24` or `1 day, 2:03:04`."""
    text = str(timedelta(seconds=round(seconds)))
    return text.removeprefix("0:").removeprefix("0") if text.startswith("0:") else text


def is_terminal(file: TextIO) -> bool:
    """Whether lines there can be drawn over."""
    return file.isatty() and os.environ.get("TERM") != "dumb"
