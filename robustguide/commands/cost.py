"""FLOPs and hours of sampling or training, counted before anything is run."""

import argparse
import json
import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console

from robustguide.files import whole

if TYPE_CHECKING:  # imports torch, which --help does not need
    from robustguide.plans.cost import Configuration, Cost
    from robustguide.plans.measuring import Measured
    from robustguide.report.page import Table

GPUS = ("a100", "h100")
EXAMPLES = """Configurations and options are those of `robustguide test` and `fit`. The sampler, or
a step of training, is run once on tensors without memory: no weights, no data and no GPU are
needed, except for networks of your own, whose files say what they are. A published network is
built from its card.

Counted are convolutions, matrix products and attention, a multiplication and an addition as two;
where papers print FLOPs they mostly count them as one. Judges, metrics and moving averages are not
counted. Hours are FLOPs over the dense peak of a GPU times --utilisation, which is assumed.

--measure runs two steps of training, attack and optimizer included, or two batches of sampling, on
the GPU if there is one and on the CPU otherwise, in a process of its own. Told are the seconds of
the second and the largest memory of both, at the configuration's precision. Weights are random and
images are noise, so that neither is needed; no row rests in the attack, so that the work is what
is counted. Moving averages and the copies of gradients that several GPUs hold are not measured.

--largest-batch doubles the batch until one does not fit, and then bisects; each trial is a process
of its own. On the GPU the limit is that of tensors, and all of the GPU if none is told. On the CPU
it must be told, and is of the resident memory of the process, with Python and all libraries: the
system refuses what would be allocated beyond, and a peak above it does not fit either.

examples:
  robustguide cost --config configs/published/adm256.yaml
  robustguide cost --config configs/published/edm2.yaml \\
    --config configs/published/edm2_img512_s_autog_fid.yaml --num-samples 10000 --devices 64
  robustguide cost --config configs/published/adm128.yaml --model.guidance.classifier.scale=0
  robustguide cost --config configs/overlay/imagenet.yaml \\
    --config configs/overlay/adm_classifier128.yaml \\
    --config configs/overlay/noisy_classifier.yaml \\
    --config configs/fit/imagenet128_robust.yaml --gpu h100 --json cost.json
  robustguide cost --config configs/overlay/cifar10.yaml \\
    --config configs/overlay/cifar10_classifier.yaml \\
    --config configs/overlay/noisy_classifier.yaml \\
    --config configs/fit/cifar10_robust.yaml --measure --largest-batch --memory-limit 4GB
"""
NEEDS = {
    "batch_size": "measure",
    "largest_batch": "measure",
    "memory_limit": "largest_batch",
}
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def run(args: list[str]) -> int:
    """Reads the command line, counts and shows."""
    given, changes = parsed(args)
    from robustguide.plans.cost import cost_of, read

    configuration = read(given.config, changes)
    found = cost_of(configuration, given.num_samples)
    devices = given.devices or found.processes
    show(found, given.gpu, devices, given.utilisation)
    measured = run_once(configuration, given) if given.measure else None
    if measured is not None:
        for line in took(found, measured, given):
            print(line)
    if given.json:
        document = described(found, given.gpu, devices, given.utilisation)
        if measured is not None:
            document["measured"] = figures(found, measured)
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
    add("--measure", action="store_true", help="run a step as well, see above")
    add("--batch-size", type=positive, metavar="N", help="images in it; data.batch_size")
    add("--largest-batch", action="store_true", help="measure the largest that fits, by trial")
    add("--memory-limit", type=size, metavar="SIZE", help="for that, such as 8GB; a CPU needs one")
    add("--json", metavar="FILE", help="write all numbers")
    given, changes = arguments.parse_known_args(args)
    for option, other in NEEDS.items():
        if getattr(given, option) and not getattr(given, other):
            arguments.error(f"{spelled(option)} is for {spelled(other)}; give both")
    if given.largest_batch and given.batch_size:
        arguments.error("--largest-batch looks for the size itself; leave out --batch-size")
    for word in changes:
        if word.startswith("--") and not word.startswith(("--model", "--data", "--trainer")):
            arguments.error(f"unrecognised option {word}; --help lists them")
    return given, changes


def spelled(option: str) -> str:
    """As it is typed."""
    return "--" + option.replace("_", "-")


def positive(word: str) -> int:
    """A number of at least 1."""
    if not word.isdigit() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {word!r}")
    return int(word)


def size(word: str) -> int:
    """Bytes, of a number and a unit."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMG]i?B)?", word, re.IGNORECASE)
    if found is None or not float(found[1]):
        raise argparse.ArgumentTypeError(f"expected a size such as 8GB or 500MiB, got {word!r}")
    return int(float(found[1]) * UNITS[(found[2] or "").upper()])


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


def run_once(configuration: "Configuration", given: argparse.Namespace) -> "Measured":
    """A step of the size asked for."""
    from robustguide.plans.measuring import largest_batch, measured

    if given.largest_batch:
        return largest_batch(configuration, given.memory_limit)
    return measured(configuration, given.batch_size)


def figures(cost: "Cost", measured: "Measured") -> dict[str, Any]:
    """What was measured, and what follows from it."""
    return asdict(measured) | {
        "step_bytes": measured.step_bytes,
        "images_a_second": measured.images_a_second,
        "flops_a_second": cost.flops * measured.images_a_second,
    }


def took(cost: "Cost", measured: "Measured", given: argparse.Namespace) -> list[str]:
    """The same in words."""
    speed = scaled(cost.flops * measured.images_a_second)
    lines = [
        "",
        f"Measured on {measured.device}, {measured.batch:,} images a step: "
        f"{measured.seconds:.4g} s, {number(measured.images_a_second)} images a second, "
        f"{speed}FLOP/s",
    ]
    if measured.step_bytes is not None:
        peak, before, step = (
            f"{scaled(each or 0)}B"
            for each in (measured.peak_bytes, measured.before_bytes, measured.step_bytes)
        )
        lines.append(f"Peak memory {peak}, {before} before the step, so {step} for it")
    lines.append(f"Memory is {measured.kind}" if len(lines) > 2 else "Memory is not known")
    if given.largest_batch:
        limit = f"{scaled(given.memory_limit)}B" if given.memory_limit else "the memory of the GPU"
        lines.append(f"Largest batch in {limit}: {measured.batch:,}")
    return lines


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
