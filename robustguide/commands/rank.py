"""Candidate classifiers and settings in the order of their calibration, before any sampling."""

import argparse
import json
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table as RichTable

from robustguide.commands.formatter import Formatter
from robustguide.commands.objects import add_object, data_words, plain

if TYPE_CHECKING:  # imports torch, which --help does not need
    from robustguide.data import Images
    from robustguide.plans.candidates import Candidate
    from robustguide.plans.ranking import Grid, Setting
    from robustguide.report.page import Table
    from robustguide.specification import Specification

WIDTH = 99  # of text
BY = ("ece", "smooth_ece", "nll", "cost")
LISTS = ("card", "runs", "base", "levels")  # options that may be followed by several words
EXAMPLES = """CLASSIFIER is a file of a classifier, or a YAML, which is read as
`robustguide test --config BASE --config YAML` reads it: its classifier, where it looks and what of
the logits is increased. Each is asked about the validation images at every noise level. What was
measured is kept in --folder, so that another candidate costs its own measurement alone.

examples:
  robustguide rank runs/demo/plain/classifier.safetensors \\
    runs/demo/robust/classifier.safetensors --config configs/overlay/digits.yaml

  at the denoised image:
  robustguide rank runs/digits_clean/classifier.safetensors --config configs/overlay/digits.yaml \\
    --view robustguide.guidance.AtDenoised \\
    --denoiser robustguide.checkpoints.load_denoiser \\
    --denoiser.path runs/demo/denoiser/denoiser.safetensors

  did the order foretell the Frechet distances of finished runs?
  robustguide rank --runs runs/ablation --out ranking.json --figure ranking.png

  settings that were not sampled yet, among those that were:
  robustguide rank configs/ablation/elucd*.yaml --runs runs/ablation

Less is better in all that --by can name. Never rank by the test split: it is for the winner.
exit code: 0 when all were ranked, 1 for an input that cannot be
"""


def run(args: list[str]) -> int:
    """Reads the command line, measures what is missing and shows the order."""
    words, lists = gathered(args)
    arguments = parser(words)
    given = arguments.parse_args(words)
    candidates, skipped = found(given, lists)
    from robustguide.plans.ranking import Grid

    grid = Grid(tuple(map(float, lists["levels"])) or Grid().levels, given.bins, given.draws)
    data, described = images(arguments, given, candidates)
    measurements = measured(candidates, skipped, data, described, grid, given)
    entries = [entry_of(*each) for each in measurements]
    if not entries:
        raise ValueError(f"No candidate is left to rank. {reasons(skipped)}")
    report(entries, skipped, given)
    return 0


def parser(words: Sequence[str]) -> ArgumentParser:
    """The arguments; see `add_object`."""
    arguments = ArgumentParser(
        prog="robustguide rank", description=__doc__, epilog=EXAMPLES, formatter_class=Formatter
    )
    add = arguments.add_argument
    add("classifiers", nargs="*", type=str, metavar="CLASSIFIER", help="checkpoint, or YAML")
    add("--card", type=str, metavar="CARD ...", help="cards of published classifiers")
    add("--runs", type=str, metavar="FOLDER ...", help="finished runs, at any depth")
    add("--base", type=str, metavar="FILE ...", help="that all YAMLs share, read first")
    add("--config", type=str, metavar="FILE", help="YAML with `data`; a later one goes over it")
    for name, base, what in (
        ("--data", "data.Images", "labelled images; those of the runs if not given"),
        ("--view", "guidance.View", "where checkpoints look; the noisy image"),
        ("--denoiser", "interfaces.Denoiser", "for a view of the denoised image"),
    ):
        add_object(arguments, words, name, f"robustguide.{base}", what, default=None)
    add("--clip", type=float | None, default=1.0, help="bound of that image; null does not clip")
    add("--levels", type=str, metavar="SIGMA ...", help="noise levels; those of `fit`")
    add("--draws", type=int, default=1, help="noises of each image")
    add("--bins", type=int, default=15, help="equal confidence bins")
    add("--by", choices=list(BY), default="ece", help="what the order is by")
    add("--outcome", type=str, default=None, help="metric of the runs, such as frechet/features")
    add("--folder", type=str, default="runs/ranking", help="where measurements are kept")
    add("--out", type=str, metavar="FILE", default=None, help="write everything as JSON")
    add(
        "--figure", type=str, metavar="FILE", default=None, help="draw distances against the order"
    )
    add("--device", type=str, default=None, help="cuda where there is one, else cpu")
    return arguments


def gathered(args: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Takes out the options of several words; one word for what each configuration says of data.

    Raises:
        FileNotFoundError: No such configuration.
    """
    words = argparse.ArgumentParser(
        prog="robustguide rank", add_help=False, allow_abbrev=False, argument_default=[]
    )
    for name in LISTS:
        words.add_argument(f"--{name}", nargs="+", action="extend", default=[])
    words.add_argument("--config", action="append", default=[])
    known, rest = words.parse_known_args(args)
    data = data_words(known.config)
    lists = {name: getattr(known, name) for name in LISTS}
    return [*data, *rest], lists


def found(
    given: Namespace, lists: Mapping[str, list[str]]
) -> "tuple[list[Candidate], dict[str, str]]":
    """Candidates, and why runs are none, by name.

    Raises:
        ValueError: Nothing is named.
    """
    from robustguide.plans import candidates as read

    if not (given.classifiers or lists["card"] or lists["runs"]):
        raise ValueError(
            "Give something to rank: files of classifiers, --card, YAMLs of guided runs, or "
            "--runs with a folder of finished ones."
        )
    base = [Path(file) for file in lists["base"] or ["configs/overlay/digits_generation.yaml"]]
    view = plain(given.view) or {"class_path": "robustguide.guidance.AtState"}
    made = []
    for word, name in titles(given.classifiers).items():
        if Path(word).suffix in (".yaml", ".yml"):
            made.append(read.of_config(Path(word), base))
        else:
            checkpoint = word, None, name
            made.append(read.of_checkpoint(*checkpoint, view, plain(given.denoiser), given.clip))
    for card in lists["card"]:
        about = None, card, card
        made.append(read.of_checkpoint(*about, view, plain(given.denoiser), given.clip))
    if not lists["runs"]:
        return made, {}
    others, skipped = read.of_runs([Path(folder) for folder in lists["runs"]])
    return [*made, *others], skipped


def titles(paths: Sequence[str]) -> dict[str, str]:
    """Short names by path; that of the folder, where the file's says nothing."""
    short = {
        path: Path(path).parent.name if Path(path).stem == "classifier" else Path(path).stem
        for path in paths
    }
    count = Counter(short.values())
    return {path: name if name and count[name] == 1 else path for path, name in short.items()}


def images(
    arguments: ArgumentParser, given: Namespace, candidates: "Sequence[Candidate]"
) -> "tuple[Images, Specification]":
    """The data, and how they are described.

    Raises:
        ValueError: There are none, or the candidates are of several.
    """
    described = plain(given.data)
    if described is None:
        said = {json.dumps(each.reference, sort_keys=True) for each in candidates} - {"null"}
        if len(said) != 1:
            raise ValueError(
                "Give the labelled images, such as --config configs/overlay/digits.yaml: "
                + ("the runs name several." if said else "no candidate names any.")
            )
        source = json.loads(said.pop())
        described = {"class_path": "robustguide.data.Images", "init_args": {"source": source}}
    parsed = arguments.parse_args([f"--data={json.dumps(described)}"])
    return arguments.instantiate(parsed).data, plain(parsed.data)


def measured(
    candidates: "Sequence[Candidate]",
    skipped: dict[str, str],
    data: "Images",
    described: "Specification",
    grid: "Grid",
    given: Namespace,
) -> "list[tuple[Candidate, str, dict[str, Any]]]":
    """Each candidate that can be measured, its setting's name and what was measured of it."""
    from robustguide.plans import ranking

    folder, parts = Path(given.folder), ranking.Parts()
    taken, missing = [], dict[str, ranking.Setting]()
    for each in candidates:
        try:
            name = ranking.fingerprint(each, grid, described)
            if name not in missing and ranking.kept(folder, name) is None:
                setting = ranking.Setting(each, grid, parts)
                setting.check(data.shape, data.class_names)
                missing[name] = setting
        except ValueError as error:
            if not each.blocks:  # it was asked for by name
                raise
            skipped[each.name] = str(error).removeprefix(f"{each.name}: ")
        else:
            taken.append((each, name))
    failures = measure(missing, data, grid, given.device, folder) if missing else {}
    found = []
    for each, name in taken:
        kept = ranking.kept(folder, name)
        if kept is not None:
            found.append((each, name, kept))
        elif not each.blocks:
            raise ValueError(f"{each.name}: {failures[name]}")
        else:
            skipped[each.name] = failures[name]
    return found


def measure(
    settings: "Mapping[str, Setting]",
    data: "Images",
    grid: "Grid",
    device: str | None,
    folder: Path,
) -> dict[str, str]:
    """Measures with a bar, and keeps what was found; answers why the others could not be."""
    import torch

    from robustguide.plans import ranking

    costs = {name: setting.cost(data.shape, grid.levels) for name, setting in settings.items()}
    batches = data.val_dataloader()
    console = Console()
    bar: Any = Progress(
        f"asking {len(settings)}",
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
    )
    with bar if console.is_terminal else nullcontext():
        task = bar.add_task("asking", total=len(batches))
        answers = ranking.measured(
            settings,
            batches,
            data.num_classes,
            grid,
            device or ("cuda" if torch.cuda.is_available() else "cpu"),
            lambda: bar.advance(task),
        )
    failures = {}
    for name, found in answers.items():
        try:
            told = ranking.told(found.compute(), grid)
        except ValueError as error:  # logits that are no numbers
            failures[name] = str(error)
        else:
            ranking.keep(folder, name, told | costs[name])
    return failures


def entry_of(candidate: "Candidate", setting: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """All that is known of a candidate, as plain data."""
    from robustguide.report.ranking import VIEWS

    views = dict.fromkeys(look.view["class_path"].rpartition(".")[2] for look in candidate.looks)
    return {
        "name": candidate.name,
        "view": " / ".join(VIEWS.get(view, view) for view in views),
        "setting": setting,
        **found,
        "asked": candidate.setting(),
        "runs": list(candidate.folders),
        "metrics": [block["metrics"] for block in candidate.blocks],
        "cost_of_runs": [block["cost"] for block in candidate.blocks],
    }


def report(entries: list[dict[str, Any]], skipped: Mapping[str, str], given: Namespace) -> None:
    """Prints the table and the verdict, and writes what was asked for."""
    from dataclasses import asdict

    from robustguide.files import whole
    from robustguide.report import ranking, save

    outcome = ranking.outcome_of(entries, given.outcome)
    told = ranking.ordered([ranking.with_outcome(entry, outcome) for entry in entries], given.by)
    shown = ranking.table(told, given.by)
    Console().print(columns(shown))
    print("\n" + wrapped(shown.caption))
    has_runs = any(entry["runs"] for entry in told)
    judged = ranking.judged(told, given.by)
    if has_runs:
        print("\n" + wrapped(ranking.verdict(judged, given.by)))
    if skipped:
        print("\n" + wrapped(reasons(skipped)))
    if given.figure:
        print(f"Figure: {save(ranking.scatter(told, given.by, outcome or ''), given.figure)}")
    if given.out:
        numbers = {name: asdict(judged[name]) for name in ("runs", "settings")}
        document = {"by": given.by, "outcome": outcome, "candidates": told, "skipped": skipped}
        with whole(given.out) as part:
            part.write_text(json.dumps(document | {"agreement": judged | numbers}, indent=1))
        print(f"Numbers: {given.out}")


def columns(told: "Table") -> RichTable:
    """The table without lines, which would be too wide for a terminal."""
    made = RichTable(box=None, padding=(0, 1, 0, 0))
    for place, title in enumerate(told.columns):
        made.add_column(title, justify="left" if place in (1, 2) else "right", overflow="fold")
    for row in told.rows:
        made.add_row(*map(str, row))
    return made


def wrapped(text: str) -> str:
    """Each line broken where the terminal's usual width ends."""
    return "\n".join(textwrap.fill(line, WIDTH) for line in text.splitlines())


def reasons(skipped: Mapping[str, str]) -> str:
    """Why others are not ranked, those of one reason together."""
    groups: dict[str, list[str]] = {}
    for name, reason in skipped.items():
        groups.setdefault(reason, []).append(name)
    return "\n".join(f"Not ranked: {', '.join(names)} ({why})." for why, names in groups.items())
