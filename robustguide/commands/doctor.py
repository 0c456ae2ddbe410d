"""`robustguide doctor`: versions, devices, threads, data sets and weights found."""

import json
import os
from dataclasses import asdict
from pathlib import Path

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from robustguide.machine import Finding, examine

EXAMPLE = """example:
  robustguide doctor --data ~/datasets --weights runs --json doctor.json

exit code: 0 when all that is needed works, else 1"""

FOLDERS = {
    "--data": "look for data sets in these folders",
    "--weights": "look for checkpoints in these folders and below",
}


def run(args: list[str]) -> int:
    """Prints what was found; 1 if something must be repaired."""
    given = parser().parse_args(args)
    findings = examine(given.runs, given.data, given.weights)
    show(findings, Console())
    if given.json:
        write(findings, Path(given.json))
    return int(any(finding.is_fault for finding in findings))


def parser() -> ArgumentParser:
    """The arguments."""
    arguments = ArgumentParser(
        prog="robustguide doctor",
        description="Looks at what this machine has, and says what to repair.",
        epilog=EXAMPLE,
    )
    for name, help_text in FOLDERS.items():
        arguments.add_argument(
            name, nargs="+", type=str, default=[], metavar="FOLDER", help=help_text
        )
    arguments.add_argument("--runs", type=str, default="runs", help="where runs will be written")
    arguments.add_argument("--json", type=str, metavar="FILE", help="write the findings there too")
    return arguments


def show(findings: list[Finding], console: Console) -> None:
    """A table, and below it a line for each repair."""
    table = Table("", "", "", "", box=None, show_header=False, padding=(0, 2, 0, 0))
    topic = ""
    for finding in findings:
        if finding.topic != topic:
            topic = finding.topic
            table.add_row()
            table.add_row(f"[bold]{topic}")
        table.add_row(f"  {escape(finding.name)}", escape(finding.value), mark(finding))
    console.print(table)
    repairs = [finding for finding in findings if finding.repair]
    for finding in sorted(repairs, key=lambda finding: not finding.is_fault):
        what = f"{finding.topic}, {finding.name}: {finding.repair}"
        console.print(f"\n{mark(finding)}  {escape(what)}")
    faults = sum(finding.is_fault for finding in findings)
    console.print(f"\n{faults} to repair." if faults else "\nAll that is needed works.")


def mark(finding: Finding) -> str:
    """How it is, in a word."""
    if finding.is_fault:
        return "[bold red]fault[/]"
    return "[yellow]note[/]" if finding.repair else "[green]ok[/]"


def write(findings: list[Finding], path: Path) -> None:
    """Writes a list of objects, under the final name only once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_text(json.dumps([asdict(finding) for finding in findings], indent=1))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
