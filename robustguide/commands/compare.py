"""Whether the difference of two scores is beyond the noise of their seeds."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser
from rich.console import Console

from robustguide.commands.formatter import Formatter

if TYPE_CHECKING:  # imports torch, which --help does not need
    from robustguide.metrics.comparison import Difference

EXAMPLES = """A and B are files of `robustguide score --out`, or folders with a score.json.
Scores of different protocols, references, extractors or numbers of images are refused. When both
have the same seeds, the groups of the jackknife are paired, and what the seeds have in common
cancels.

examples:
  robustguide compare plain.json robust.json
  robustguide compare runs/a runs/b --out difference.json

exit code: 0 when they could be compared, whatever the verdict, else 1
"""


def run(args: list[str]) -> int:
    """Reads the command line, compares and shows."""
    arguments = ArgumentParser(
        prog="robustguide compare",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=Formatter,
    )
    for side in "ab":
        arguments.add_argument(side, type=str, metavar=side.upper(), help="a score")
    arguments.add_argument("--out", type=str, metavar="FILE", default=None, help="write JSON")
    given = arguments.parse_args(args)
    from robustguide.metrics.comparison import compare
    from robustguide.metrics.score import Score
    from robustguide.report.scores import differences, pairing

    names = (given.a, given.b)
    a, b = Score.load(given.a), Score.load(given.b)
    found, paired = compare(a, b, names)
    console = Console()
    console.print(differences(found).narrow())
    console.print(pairing(found, paired, names), highlight=False)
    if given.out:
        write(Path(given.out), found, paired, names)
        print(f"Numbers: {given.out}")
    return 0


def write(path: Path, found: "list[Difference]", paired: bool, names: tuple[str, str]) -> None:
    """The comparison as JSON."""
    from robustguide.files import whole

    rows = [
        {
            "key": each.key,
            "shown": each.a.shown,
            "a": each.a.value,
            "b": each.b.value,
            "difference": each.value,
            "interval": each.interval,
            "verdict": each.verdict,
        }
        for each in found
    ]
    with whole(path) as part:
        document = {"a": names[0], "b": names[1], "paired": paired, "differences": rows}
        part.write_text(json.dumps(document, indent=1) + "\n")
