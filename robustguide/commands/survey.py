"""Asks people which of two images is better: a page of questions, and what the answers say."""

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from robustguide.commands.formatter import Formatter

if TYPE_CHECKING:  # imports torch, which --help does not need
    from robustguide.data.generated import Generated

EXAMPLES = """`build` writes one HTML file that opens offline and sends nothing, and its key beside
it. People answer in a browser and send back the file that it gives them. Keep the
key to yourself; `score` needs it.

examples:
  robustguide survey build runs/demo/plain_guided runs/demo/robust_guided --out survey.html
  robustguide survey score survey.key.json answers/*.json --out score.json
  robustguide survey build --help

exit code: 0 when the survey was built or scored, 1 for an input that cannot be
"""
BUILD = "Writes a page that shows pairs of images of one seed and class, by two methods each."
BUILD_EXAMPLES = """SAMPLES is the folder of a run of `robustguide test` or `predict`, a folder
of PNG files, an .npz, or shards. All sets must hold the same seeds, with the same
classes. The key, survey.key.json for survey.html, tells which image is whose; the
page does not. The same arguments write the same survey.

examples:
  robustguide survey build runs/demo/unguided runs/demo/robust_guided --out survey.html
  robustguide survey build a.npz b.npz c.npz --names plain robust none --pairs 90 \\
    --ties --out survey.html
  robustguide survey build runs/a runs/b --question 'Which image shows a better {class}?' \\
    --checks 4 --seed 1 --out survey.html

exit code: 0 when page and key were written, 1 for samples that do not match
"""
SCORE = "Says how often each method was preferred, how sure that is, and how raters agree."
SCORE_EXAMPLES = """Files that hold no answers to this survey are set aside, with the reason, and
raters who failed too many attention checks are left out. Intervals: 95% of
independent answers (Wilson), and over raters by a jackknife. A tie is half a win for
both.

examples:
  robustguide survey score survey.key.json answers/*.json
  robustguide survey score survey.key.json answers/*.json --max-failed 1 --out score.json
  robustguide survey score survey.key.json answers/*.json --margin 0.1 --power 0.9

exit code: 0 when there were answers to score, 1 when there were none
"""


def run(args: list[str]) -> int:
    """Reads the command line, and builds or scores."""
    given = parser().parse_args(args)
    if given.action == "build":
        return built(given.build)
    return scored(given.score)


def parser() -> ArgumentParser:
    """The arguments."""
    arguments = ArgumentParser(
        prog="robustguide survey", description=__doc__, epilog=EXAMPLES, formatter_class=Formatter
    )
    actions = arguments.add_subcommands(required=True, dest="action")
    actions.add_subcommand("build", build_parser(), help="write the page and its key")
    actions.add_subcommand("score", score_parser(), help="read the answers")
    return arguments


def build_parser() -> ArgumentParser:
    """The arguments of `build`."""
    arguments = ArgumentParser(description=BUILD, epilog=BUILD_EXAMPLES, formatter_class=Formatter)
    add = arguments.add_argument
    add("samples", nargs="+", type=str, metavar="SAMPLES", help="of a method, two or more")
    add("--out", type=str, metavar="FILE", required=True, help="a new page, such as survey.html")
    add("--names", nargs="+", type=str, default=[], help="of the methods, else those of the files")
    add("--pairs", type=int, default=30, help="questions about methods")
    add("--checks", type=int, default=3, help="attention checks, in which one side is noise")
    add("--question", type=str, default=None, help="asked of each pair; {class} is its class")
    add("--title", type=str, default="Which image is better?", help="of the page")
    add("--scale", type=int, default=None, help="enlarges images; else small ones to 256 px")
    add("--ties", action="store_true", help="allow the answer 'no difference'")
    add("--n", type=int, default=None, help="take the first N samples of each set alone")
    add("--seed", type=int, default=0, help="of order, sides and choice of samples")
    return arguments


def score_parser() -> ArgumentParser:
    """The arguments of `score`."""
    arguments = ArgumentParser(description=SCORE, epilog=SCORE_EXAMPLES, formatter_class=Formatter)
    add = arguments.add_argument
    add("key", type=str, metavar="KEY", help="that `build` wrote")
    add("answers", nargs="+", type=str, metavar="ANSWERS", help="files of the raters")
    add("--max-failed", type=int, default=0, help="attention checks that may fail")
    add("--margin", type=float, default=0.05, help="of a win rate over 1/2, for the power")
    add("--power", type=float, default=0.8, help="chance to find that margin")
    add("--out", type=str, metavar="FILE", default=None, help="write the score as JSON")
    return arguments


def built(given: Namespace) -> int:
    """Writes page and key."""
    from robustguide.report.opinions import spoken
    from robustguide.survey import Wanted, build

    wanted = Wanted(
        pairs=given.pairs,
        checks=given.checks,
        question=given.question,
        title=given.title,
        scale=given.scale,
        has_ties=given.ties,
        seed=given.seed,
    )
    made = build(opened(given.samples, given.names, given.n), Path(given.out), wanted)
    print(f"Page: {made.page} ({made.page.stat().st_size / 1000:,.0f} kB), to be sent to raters")
    print(f"Key: {made.key_path}, to be kept")
    print(
        f"{given.pairs} questions and {given.checks} attention checks about "
        f"{', '.join(map(spoken, made.key.names))}"
    )
    if made.equal:
        print(f"Warning: {made.equal} of the questions show one image twice.")
    return 0


def opened(paths: list[str], names: list[str], count: int | None) -> "dict[str, Generated]":
    """Sets of samples by the names of their methods.

    Raises:
        ValueError: If names are missing, or two are the same.
    """
    from robustguide.data.generated import First
    from robustguide.survey import open_set

    called = names or [Path(path).resolve().stem for path in paths]
    if len(called) != len(paths):
        raise ValueError(
            f"--names gives {len(called)} names for {len(paths)} sets of samples; give one a set."
        )
    twice = [name for name, number in Counter(called).items() if number > 1]
    if twice:
        raise ValueError(
            f"Two sets of samples are called {twice[0]!r}; give each its own name by --names."
        )
    sets = {name: open_set(path) for name, path in zip(called, paths, strict=True)}
    if count is None:
        return sets
    return {name: First(samples, count) for name, samples in sets.items()}


def scored(given: Namespace) -> int:
    """Reads the answers and shows what they say."""
    from robustguide.files import whole
    from robustguide.report import opinions
    from robustguide.survey import Key, Settings, gather, score

    settings = Settings(given.max_failed, given.margin, given.power)
    key = Key.load(Path(given.key))
    told = score(key, gather([Path(path) for path in given.answers], key), settings)
    console = Console()
    for make in (opinions.wins, opinions.classes, opinions.strengths, opinions.raters):
        table = make(told)
        if table is not None:
            console.print(table.narrow())
            console.print()
    for line in opinions.notes(told):
        console.print(line, highlight=False, markup=False)
    if given.out:
        with whole(given.out) as part:
            part.write_text(json.dumps(told, indent=1) + "\n")
        print(f"Score: {opinions.spoken(given.out)}")
    return 0
