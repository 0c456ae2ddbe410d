"""A bar of images that are read or measured."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn


@contextmanager
def bar(what: str, count: int, console: Console) -> Iterator[Any]:
    """A progress bar on a terminal; answers what is told of images that are done."""
    shown = Progress(
        what, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    )
    with shown if console.is_terminal else nullcontext():
        task = shown.add_task(what, total=count)
        yield lambda images: shown.advance(task, images)
