"""`robustguide cards`: the published checkpoints that are known, and which are here."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser
from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.table import Table

from robustguide.cards import Card, card, cards, folder, present
from robustguide.commands.formatter import Formatter

EXAMPLES = """examples:
  robustguide cards
  robustguide cards edm2
  robustguide cards adm-imagenet256
  robustguide cards --json"""


def run(args: list[str]) -> int:
    """Prints one card, or a table of those that fit."""
    parser = ArgumentParser(
        prog="robustguide cards", description=__doc__, epilog=EXAMPLES, formatter_class=Formatter
    )
    parser.add_argument("name", type=str, nargs="?", default="", help="a card, or a part of names")
    parser.add_argument("--folder", type=str, default=None, help="where checkpoints are kept")
    parser.add_argument("--json", action="store_true", help="print them as JSON")
    options = parser.parse_args(args)
    where = Path(options.folder).expanduser() if options.folder else folder()
    found = [each for each in cards().values() if options.name in each.name]
    if options.name in cards():
        found = [card(options.name)]
    elif not found:
        card(options.name)  # tells what is like it

    def place(of: Card) -> str | None:
        there = present(of, where)
        return None if there is None else str(there)

    def told(of: Card) -> dict[str, Any]:
        from robustguide.checkpoints.published import (
            results_of,
        )  # imports torch

        return asdict(of) | {"present": place(of), "published": results_of(of.name)}

    if options.json:
        print(json.dumps([told(each) for each in found], indent=1))
    elif len(found) == 1:
        document = told(found[0])
        print(yaml.safe_dump(json.loads(json.dumps(document)), sort_keys=False, width=99), end="")
    else:
        console = Console()
        if not console.is_terminal:  # a file or a pipe has no width
            console = Console(width=200)
        console.print(table([(each, place(each)) for each in found]))
        print(f"\n{len(found)} cards; a name shows one. Files are looked for in {where}.")
    return 0


def table(rows: list[tuple[Card, str | None]]) -> Table:
    """One row a card; the last column tells the kind of file that is here."""
    made = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("card", "kind", "shape", "classes", "parameters", "file", "here"):
        side: JustifyMethod = "right" if heading == "parameters" else "left"
        made.add_column(heading, justify=side, no_wrap=heading == "card")
    for of, there in rows:
        made.add_row(
            of.name,
            of.kind,
            "x".join(map(str, of.shape)),
            of.classes or "-",
            "-" if of.parameters is None else f"{of.parameters / 1e6:.1f}M",
            escape(of.file),
            "-" if there is None else Path(there).suffix[1:],
        )
    return made
