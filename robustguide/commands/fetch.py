"""`robustguide fetch`: downloads a published checkpoint, once, on a login node."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from robustguide.cards import card, folder
from robustguide.cards.download import fetch
from robustguide.commands.formatter import Formatter

EXAMPLES = """examples:
  robustguide fetch adm-imagenet128 adm-classifier128
  robustguide fetch dit-xl2-256 --folder /scratch/checkpoints
  robustguide fetch adm-imagenet64 --mirror https://mirror.example.org/checkpoints

An interrupted download goes on where it stopped. A job never downloads."""


def run(args: list[str]) -> int:
    """Downloads what is not there."""
    parser = ArgumentParser(
        prog="robustguide fetch", description=__doc__, epilog=EXAMPLES, formatter_class=Formatter
    )
    parser.add_argument("names", type=str, nargs="+", help="cards; `robustguide cards` lists them")
    parser.add_argument("--folder", type=str, default=None, help="where checkpoints are kept")
    parser.add_argument(
        "--mirror", type=str, default=None, help="address of a folder with the files"
    )
    options = parser.parse_args(args)
    where = Path(options.folder).expanduser() if options.folder else folder()
    wanted = [card(name) for name in options.names]  # a wrong name costs no download
    for of in wanted:
        print(f"{of.name}: {of.file}. Terms of the weights: {of.licence}.")
        path = shown(of.name, partial(fetch, of, where, options.mirror))
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    return 0


def shown(name: str, fetch: Callable[..., Path]) -> Path:
    """Downloads under a progress bar."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=None)
        return fetch(lambda done, total: bar.update(task, completed=done, total=total))
