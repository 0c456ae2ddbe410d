"""`robustguide doctor`: versions, devices, threads, data sets and weights found."""

import json
from dataclasses import asdict

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from robustguide.commands.formatter import Formatter
from robustguide.files import whole
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
        with whole(given.json) as part:
            part.write_text(json.dumps([asdict(finding) for finding in findings], indent=1))
    return int(any(finding.is_fault for finding in findings))


def parser() -> ArgumentParser:
    """The arguments."""
    arguments = ArgumentParser(
        prog="robustguide doctor",
        description="Looks at what this machine has, and says what to repair.",
        epilog=EXAMPLE,
        formatter_class=Formatter,
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
