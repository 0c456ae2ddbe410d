"""One offline page about any runs: what was run, numbers, images, curves, cost and provenance."""

import sys
from pathlib import Path

from jsonargparse import ArgumentParser

from robustguide.commands.formatter import Formatter

EXAMPLES = """RUN is a run folder of `robustguide test`, `validate` or `fit`, with the results.json
that it leaves when it ends, or a folder that holds such folders: then all of them.

examples:
  robustguide report runs/demo
  robustguide report runs/demo/unguided runs/demo/robust_guided --out guided.html
  robustguide report runs/sweep --title "Scales of the robust classifier" --out sweep.html

What is missing or cannot be read is told on the page and here; the rest is shown.
exit code: 0 when the page was written, 1 when no run is there
"""


def run(args: list[str]) -> int:
    """Reads the command line, writes the page and tells what is missing."""
    parser = ArgumentParser(
        prog="robustguide report", description=__doc__, epilog=EXAMPLES, formatter_class=Formatter
    )
    parser.add_argument("runs", type=str, nargs="+", metavar="RUN", help="run folders, or above")
    parser.add_argument("--out", type=str, default="report.html", help="the HTML file")
    parser.add_argument("--title", type=str, default="Report of runs", help="of the page")
    given = parser.parse_args(args)
    from robustguide.report import sections  # imports torch, which --help does not need
    from robustguide.report.reading import read_all

    runs = read_all(given.runs)
    for each in runs:
        for note in each.notes:
            print(f"{each.name}: {note}".encode("utf-8", "replace").decode(), file=sys.stderr)
    found = sections.write_report(given.out, runs, given.title)
    shown = sections.count_figures(found)
    size = Path(given.out).stat().st_size / 1e6
    print(f"Report: {given.out}, {len(runs)} runs, {shown} figures, {size:.1f} MB")
    return 0
