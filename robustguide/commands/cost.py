"""FLOPs and hours of sampling or training, counted before anything is run."""

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console

from robustguide.files import whole

if TYPE_CHECKING:  # imports torch, which --help does not need
    from robustguide.plans.cost import Cost
    from robustguide.report.page import Table

GPUS = ("a100", "h100")
EXAMPLES = """Configurations and options are those of `robustguide test` and `fit`. The sampler, or
a step of training, is run once on tensors without memory: no weights, no data and no GPU are
needed, except for networks of your own, whose files say what they are. A published network is
built from its card.

Counted are convolutions, matrix products and attention, a multiplication and an addition as two;
where papers print FLOPs they mostly count them as one. Judges, metrics and moving averages are not
counted. Hours are FLOPs over the dense peak of a GPU times --utilisation, which is assumed.

examples:
  robustguide cost --config configs/published/adm256.yaml
  robustguide cost --config configs/published/edm2.yaml \\
    --config configs/published/edm2_img512_s_autog_fid.yaml --num-samples 10000 --devices 64
  robustguide cost --config configs/published/adm128.yaml --model.guidance.classifier.scale=0
  robustguide cost --config configs/overlay/imagenet.yaml \\
    --config configs/overlay/adm_classifier128.yaml \\
    --config configs/overlay/noisy_classifier.yaml \\
    --config configs/fit/imagenet128_robust.yaml --gpu h100 --json cost.json
"""


def run(args: list[str]) -> int:
    """Reads the command line, counts and shows."""
    given, changes = parsed(args)
    from robustguide.plans.cost import cost_of, read

    found = cost_of(read(given.config, changes), given.num_samples)
    devices = given.devices or found.processes
    show(found, given.gpu, devices, given.utilisation)
    if given.json:
        document = described(found, given.gpu, devices, given.utilisation)
        with whole(given.json) as part:
            part.write_text(json.dumps(document, indent=1) + "\n")
        print(f"Cost: {given.json}")
    return 0


def parsed(args: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """What is told to this command, and options that go over the configurations."""
    arguments = argparse.ArgumentParser(
        prog="robustguide cost",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = arguments.add_argument
    add("--config", action="append", required=True, metavar="FILE", help="several go over another")
    add("--num-samples", type=positive, metavar="N", help="images; data.count, or 50,000")
    add("--gpu", nargs="+", choices=GPUS, default=list(GPUS), help="both, if not told")
    add("--devices", type=positive, metavar="K", help="GPUs that share the work; trainer.devices")
    add("--utilisation", type=share, default=0.35, help="of the dense peak, 0.35")
    add("--json", metavar="FILE", help="write all numbers")
    given, changes = arguments.parse_known_args(args)
    for word in changes:
        if word.startswith("--") and not word.startswith(("--model", "--data", "--trainer")):
            arguments.error(f"unrecognised option {word}; --help lists them")
    return given, changes


def positive(word: str) -> int:
    """A number of at least 1."""
    if not word.isdigit() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {word!r}")
    return int(word)


def share(word: str) -> float:
    """A number above 0 and at most 1."""
    value = float(word)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"expected a share above 0 and at most 1, got {word}")
    return value


def show(cost: "Cost", gpus: list[str], devices: int, utilisation: float) -> None:
    """Prints the tables."""
    console = Console()
    console.print(parts(cost).narrow())
    for line in (total(cost), *memory(cost), *cost.notes):
        console.print(line, highlight=False)
    console.print()
    console.print(hours(cost, gpus, devices, utilisation).narrow())
    shared = f", and hours of {devices:,} that share them evenly" if devices > 1 else ""
    console.print(
        f"GPU-hours{shared}, at {utilisation:.0%} of the dense peak. The configuration computes "
        f"in {cost.precision}.",
        highlight=False,
    )


def parts(cost: "Cost") -> "Table":
    """One row for each kind of work."""
    from robustguide.report.page import Table

    rows = [
        (
            each.network,
            each.made_of,
            each.work,
            scaled(each.parameters),
            "-" if each.rows is None else f"{each.rows:,}",
            "-" if each.flops_a_row is None else scaled(each.flops_a_row),
            scaled(each.flops),
            f"{each.flops / cost.flops:.1%}",
        )
        for each in cost.parts
    ]
    titles = ("part", "network", "work", "weights", "rows", "FLOPs a row", "an image", "share")
    return Table(titles, rows)


def total(cost: "Cost") -> str:
    """The sum, in words."""
    one, every = f"{scaled(cost.flops)}FLOP", f"{scaled(cost.flops * cost.images)}FLOP"
    if cost.steps is None:
        return f"{one} an image, {every} for {cost.images:,} images"
    batch = cost.images // cost.steps
    step = f"{scaled(cost.flops * batch)}FLOP a step of {batch:,} images"
    return f"{one} an image, {step}, {every} for {cost.steps:,} steps"


def memory(cost: "Cost") -> list[str]:
    """What was counted of it."""
    lines = []
    if cost.state_bytes is not None:
        state = scaled(cost.state_bytes)
        lines.append(f"Weights, gradients and state of the optimizer: {state}B on each GPU")
    for each in cost.parts:
        if each.kept_bytes:
            kept = scaled(each.kept_bytes)
            lines.append(f"{each.network} keeps {kept}B a row for its gradient, in float32")
    return lines


def hours(cost: "Cost", gpus: list[str], devices: int, utilisation: float) -> "Table":
    """One row a GPU, and one for several."""
    from robustguide.plans.cost import PEAKS
    from robustguide.report.page import Table

    rows = []
    for gpu in gpus:
        each = [cost.gpu_hours(gpu, precision, utilisation) for precision in PEAKS[gpu]]
        rows.append((gpu, *map(number, each)))
        if devices > 1:
            rows.append((f"{devices:,} {gpu}", *(number(value / devices) for value in each)))
    return Table(("GPU", *PEAKS[gpus[0]]), rows)


def scaled(value: float) -> str:
    """Three digits and the beginning of a unit."""
    for size, name in ((1e24, "Y"), (1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T")):
        if value >= size:
            return f"{number(value / size)} {name}"
    for size, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{number(value / size)} {name}"
    return f"{value:g} "


def number(value: float) -> str:
    """Three digits, more where there are more before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def described(cost: "Cost", gpus: list[str], devices: int, utilisation: float) -> dict[str, Any]:
    """All numbers as plain data."""
    from robustguide.plans.cost import PEAKS

    return {
        **asdict(cost),
        "flops_an_image": cost.flops,
        "flops": cost.flops * cost.images,
        "utilisation": utilisation,
        "devices": devices,
        "peak_flops_a_second": {gpu: PEAKS[gpu] for gpu in gpus},
        "gpu_hours": {
            gpu: {name: cost.gpu_hours(gpu, name, utilisation) for name in PEAKS[gpu]}
            for gpu in gpus
        },
    }
