"""Numbers of sampled images by a named protocol, with their intervals and their reference."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from robustguide.commands.formatter import Formatter
from robustguide.commands.progress import bar

if TYPE_CHECKING:  # imports torch, which --help does not need
    from robustguide.data.generated import Generated
    from robustguide.metrics.score import Score

EXAMPLES = """SAMPLES is a folder of PNG files, an .npz as ADM's evaluator reads it, or WebDataset
shards, from any tool. A number is called by what it is: FID-2k@adm is the FID of 2,000 images by
protocol adm.

protocols:
{protocols}

examples:
  robustguide score runs/samples --protocol digits_features --reference digits.safetensors
  robustguide score samples.npz --protocol adm --reference VIRTUAL_imagenet128_labeled.npz
  robustguide score runs/samples --protocol edm --reference img512.pkl --blocks 3 --out score.json
  robustguide score runs/samples --protocol class-accuracy \\
    --weights runs/demo/judge/classifier.safetensors

Features go to disk; --features FOLDER keeps them, and the same command goes on where it stopped.
exit code: 0 when all was measured, 1 for an input that cannot be
"""
# Of `robustguide.metrics.protocols`, in words of its own, since those import torch.
SOURCES = {
    "adm": "Dhariwal and Nichol (2021); openai/guided-diffusion @ 22e0df8, evaluator.py",
    "edm": "Karras et al. (2022); NVlabs/edm @ 008a4e5, fid.py",
    "clean": "Parmar et al. (2022); clean-fid 0.1.35, mode clean",
    "fd-dinov2-edm2": "Karras et al. (2024); NVlabs/edm2 @ 4bf8162, calculate_metrics.py",
    "fd-dinov2-dgm": "Stein et al. (2023); layer6ai-labs/dgm-eval @ 74c79f7",
    "clip-score": "Hessel et al. (2021), without their factor; Radford et al. (2021)",
    "class-accuracy": "a classifier of your own, in the file that its training exported",
    "digits_features": "`robustguide demo` trains it, or `robustguide fit` with configs/overlay/"
    "digits.yaml, configs/overlay/digits_classifier.yaml and configs/fit/digits_features.yaml",
    "fashion_mnist_features": "it ships with the package; the second command in the head of "
    "configs/fit/fashion_mnist_judge.yaml trained it",
    "classifier_features": "a classifier of your own, in the file that its training exported",
}


def run(args: list[str]) -> int:
    """Reads the command line, measures and shows."""
    given = parser().parse_args(args)
    console = Console()
    found = scored(given, console)
    from robustguide.report.scores import footnotes, table

    shown = table(found)
    console.print(shown.narrow())
    for line in (shown.caption, *footnotes(found)):
        console.print(line, highlight=False)
    if given.out:
        found.save(given.out)
        print(f"Score: {given.out}")
    return 0


def parser() -> ArgumentParser:
    """The arguments."""
    listed = "\n".join(f"  {name:<22} {source}" for name, source in SOURCES.items())
    arguments = ArgumentParser(
        prog="robustguide score",
        description=__doc__,
        epilog=EXAMPLES.format(protocols=listed),
        formatter_class=Formatter,
    )
    add = arguments.add_argument
    add("samples", type=str, metavar="SAMPLES", help="folder, .npz or shards")
    add("--protocol", type=str, metavar="NAME", required=True, help="see below")
    add(
        "--reference",
        type=str,
        metavar="FILE",
        default=None,
        help="of `robustguide stats`, or as published",
    )
    add("--weights", type=str, metavar="FILE", default=None, help="of the protocol's network")
    add("--n", type=int, default=None, help="the first N images alone")
    add("--blocks", type=int, default=1, help="of consecutive seeds, each measured by itself")
    add("--groups", type=int, default=20, help="of the jackknife; 1 gives no intervals")
    add("--no-infinity", action="store_true", help="no extrapolation of Frechet distances")
    add("--batch-size", type=int, default=64, help="images at a time")
    add("--features", type=str, metavar="FOLDER", default=None, help="keeps the features there")
    add("--device", type=str, default=None, help="cuda where there is one, else cpu")
    add("--out", type=str, metavar="FILE", default=None, help="write the score as JSON")
    return arguments


def scored(given: Namespace, console: Console) -> "Score":
    """The score that the arguments ask for."""
    import torch

    from robustguide.checkpoints.extractors import load_extractor
    from robustguide.checkpoints.references import open_reference, with_activations
    from robustguide.data.generated import First, open_samples
    from robustguide.metrics.protocols import protocol
    from robustguide.plans import scoring

    wanted = protocol(given.protocol)
    samples: Generated = open_samples(given.samples)
    if given.n is not None:
        samples = First(samples, given.n)
    weights = Path(given.weights) if given.weights else None
    scoring.refuse_guide(wanted, weights, samples.made)
    device = torch.device(given.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    extractor = load_extractor(wanted, given.weights, class_names=samples.class_names)
    reference = open_reference(given.reference, wanted) if given.reference else None
    if reference is not None:
        wanted.require(reference, extractor.identity)  # before the long part
        reference = with_activations(reference, extractor.to(device), wanted, given.batch_size)
    scoring.check(wanted, extractor.identity, reference, samples.count, given.blocks)
    with folder_of(given.features) as folder:
        store = scoring.store_of(folder, extractor.identity)
        with bar("features", samples.count, console) as advance:
            found = scoring.extract(samples, extractor, store, given.batch_size, device, advance)
        return scoring.score(
            wanted,
            extractor.identity,
            found,
            reference,
            {"path": str(given.samples), **samples.made},
            given.blocks,
            given.groups,
            not given.no_infinity,
        )


@contextmanager
def folder_of(kept: str | None) -> Iterator[Path]:
    """A folder that stays, or one that goes."""
    if kept is not None:
        yield Path(kept)
        return
    with tempfile.TemporaryDirectory(prefix="robustguide-features-") as made:
        yield Path(made)
