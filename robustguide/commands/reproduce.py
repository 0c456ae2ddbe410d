"""Runs a published result with fewer images, and says whether it agrees with the number."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from robustguide.commands.formatter import Formatter

if TYPE_CHECKING:  # imports torch, which --help does not need
    from robustguide.checkpoints.published import Preset
    from robustguide.metrics.score import Score

EXAMPLES = """PRESET is a name of --list, or a YAML of your own with configs, protocol, numbers,
source and perhaps reference, changes, images, runs and weights. Samples and features stay in
--folder: the same command goes on where it stopped, and a larger --n adds to what is there.

examples:
  robustguide reproduce --list
  robustguide reproduce adm128 --check
  robustguide reproduce adm128 --n 2000
  robustguide reproduce digits-robust --n 1000

exit code: 0 when no number is inconsistent, 1 when a file is missing, 3 when one is
"""
INCONSISTENT = 3


def run(args: list[str]) -> int:
    """Reads the command line, samples, scores and judges."""
    given = parser().parse_args(args)
    from robustguide.checkpoints.published import preset, presets
    from robustguide.plans import reproduction
    from robustguide.report import scores

    console = Console()
    if given.list:
        console.print(scores.presets(list(presets().values())).narrow())
        return 0
    if given.preset is None:
        raise ValueError("Give a preset, such as adm128; --list shows all.")
    is_file = given.preset.endswith((".yaml", ".yml"))
    wanted = reproduction.preset_of_file(Path(given.preset)) if is_file else preset(given.preset)
    protocol = reproduction.protocol_of(wanted)
    if not complete(wanted, given):
        return 1
    if given.check:
        return 0
    where = Path(given.folder or f"runs/reproduce/{wanted.name}")
    sample(wanted, given, where)
    found = score(wanted, given, where, console)
    verdicts = reproduction.judge(wanted, protocol, found)
    shown = scores.verdicts(wanted, verdicts)
    console.print(shown.narrow())
    console.print(shown.caption, highlight=False)
    document = {"preset": asdict(wanted), "verdicts": [asdict(each) for each in verdicts]}
    (where / f"verdict_{given.n}.json").write_text(json.dumps(document, indent=1) + "\n")
    print(f"Samples, score and verdict: {where}")
    return INCONSISTENT if any(each.word == "inconsistent" for each in verdicts) else 0


def parser() -> ArgumentParser:
    """The arguments."""
    arguments = ArgumentParser(
        prog="robustguide reproduce",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=Formatter,
    )
    add = arguments.add_argument
    add("preset", type=str, nargs="?", default=None, metavar="PRESET", help="name, or YAML")
    add("--n", type=int, default=2000, help="images")
    add("--first", type=int, default=0, help="number of the first image")
    add("--check", action="store_true", help="only tell which files are needed and here")
    add("--list", action="store_true", help="list the presets")
    add("--reference", type=str, default=None, metavar="FILE", help="in place of the preset's")
    add("--weights", type=str, default=None, metavar="FILE", help="of the protocol's network")
    add("--folder", type=str, default=None, help="runs/reproduce/PRESET")
    add("--batch-size", type=int, default=64, help="images that are measured at a time")
    add("--device", type=str, default=None, help="of the measurement; cuda if there is one")
    add(
        "--set",
        nargs="+",
        action="extend",
        type=str,
        default=[],
        metavar="KEY=VALUE",
        help="options of the run, such as trainer.accelerator=gpu",
    )
    return arguments


def complete(preset: "Preset", given: Namespace) -> bool:
    """Whether all files are there; prints which are not, and how to get them."""
    from robustguide.plans.reproduction import needs
    from robustguide.report.scores import needed

    found = needs(preset, given.weights, given.reference)
    missing = [each for each in found if not each.there]
    if missing or given.check:
        print("\n".join(needed(found)))
    if missing:
        print(f"{preset.name}: {len(missing)} of {len(found)} files are missing.", file=sys.stderr)
    return not missing


def sample(preset: "Preset", given: Namespace, where: Path) -> None:
    """Writes the images that are not there."""
    from robustguide.plans import Job, JobDisplay, run_jobs
    from robustguide.plans.reproduction import command

    changes = [f"--{change.removeprefix('--')}" for change in given.set]
    words = (*command(preset, given.n, given.first, where), *changes)
    jobs = [Job("samples", words)]
    with JobDisplay(jobs) as show:
        run_jobs(jobs, where / "logs", 1, show)


def score(preset: "Preset", given: Namespace, where: Path, console: Console) -> "Score":
    """The score of the samples; the reference is made first, where the data have to give it."""
    from robustguide.cards import folder
    from robustguide.commands.score import parser as score_parser
    from robustguide.commands.score import scored

    reference = given.reference
    if reference is None and preset.reference is not None:
        reference = str(folder() / preset.reference)
    if reference is None:
        reference = own_reference(preset, given, where)
    options = {"--weights": given.weights or preset.weights, "--device": given.device}
    words = [
        str(where),
        f"--protocol={preset.protocol}",
        f"--reference={reference}",
        f"--n={given.n}",
        f"--batch-size={given.batch_size}",
        f"--features={where / 'features'}",
        *(f"{name}={value}" for name, value in options.items() if value),
    ]
    found = scored(score_parser().parse_args(words), console)
    found.save(where / "score.json")
    return found


def own_reference(preset: "Preset", given: Namespace, where: Path) -> str:
    """Statistics of the real images that the configuration names, made once."""
    from robustguide.commands.stats import run as stats

    path = where / "reference.safetensors"
    weights = given.weights or preset.weights
    if not path.is_file():
        stats(
            [
                *(f"--config={file}" for file in preset.configs),
                f"--protocol={preset.protocol}",
                f"--out={path}",
                *([f"--weights={weights}"] if weights else []),
            ]
        )
    return str(path)
