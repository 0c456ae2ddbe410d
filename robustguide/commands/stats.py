"""Statistics of real images by a named protocol, which samples are then compared with."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table

from robustguide.commands.formatter import Formatter
from robustguide.commands.objects import add_object, data_words, plain
from robustguide.commands.progress import bar

if TYPE_CHECKING:  # imports torch, which --help does not need
    from robustguide.data.generated import Generated
    from robustguide.metrics.reference import Reference

FOLDER = "runs/references"
EXAMPLES = """DATA is a folder of PNG files, an .npz file with arr_0, or WebDataset shards, whose
images are taken as they are. Data modules, which crop and resize, are given by --data or --config
instead; of a configuration of sampling, data.reference is taken.

examples:
  robustguide stats --protocol digits_features --data robustguide.data.Images \\
    --data.source robustguide.data.Digits --out digits.safetensors
  robustguide stats --protocol digits_features --config configs/overlay/digits_generation.yaml
  robustguide stats --protocol fd-dinov2-edm2 --config configs/overlay/imagenet.yaml \\
    --data.source.size 512 --workers 8
  robustguide stats cifar10.npz --protocol adm --split train --recipe "32 x 32, as published"

The file says where it comes from: data set, split, recipe, number and hash of the images, network
and resize. Precision and recall need features themselves; --activations images give them, the
first ones in an order that a hash of their places fixes. The same command writes the same bytes.
"""


def run(args: list[str]) -> int:
    """Reads the command line, measures and writes."""
    arguments = parser(args)
    given = arguments.parse_args(gathered(args))
    images, told = opened(given, arguments.instantiate(given))
    reference = measured(given, images, told)
    out = given.out or default_place(told["data"], told["split"], given.protocol)
    reference.save(out)
    show(reference, out)
    return 0


def parser(words: Sequence[str]) -> ArgumentParser:
    """The arguments; see `add_object`."""
    arguments = ArgumentParser(
        prog="robustguide stats", description=__doc__, epilog=EXAMPLES, formatter_class=Formatter
    )
    add = arguments.add_argument
    add("images", nargs="?", type=str, metavar="DATA", help="folder, .npz or shards")
    add("--protocol", type=str, metavar="NAME", required=True, help="such as adm")
    add("--config", type=str, metavar="FILE", help="YAML with `data`; a later one goes over it")
    base = "robustguide.data.module.Classes"
    add_object(arguments, words, "--data", base, "data module", default=None)
    add("--split", type=str, default=None, help="of a data module, train; of DATA, for the reader")
    add("--recipe", type=str, metavar="TEXT", default=None, help="how the images were made")
    add("--weights", type=str, metavar="FILE", default=None, help="of the protocol's network")
    add("--activations", type=int, metavar="N", default=None, help="features kept; as published")
    add("--batch-size", type=int, default=64, help="images at a time")
    add("--workers", type=int, default=0, help="processes that read images of a data module")
    add("--device", type=str, default=None, help="cuda where there is one, else cpu")
    add("--out", type=str, metavar="FILE", default=None, help=f"by default below {FOLDER}")
    return arguments


def gathered(args: list[str]) -> list[str]:
    """One word for what each configuration says of data, in the place of its name.

    Raises:
        FileNotFoundError: No such configuration.
        ValueError: It says nothing of data.
    """
    words = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    words.add_argument("--config", action="append", default=[])
    known, rest = words.parse_known_args(args)
    data = data_words(known.config)
    if known.config and not data:
        raise ValueError(
            f"{', '.join(known.config)} says nothing of data; give a configuration that does, "
            "--data, or DATA."
        )
    return [*data, *rest]


def opened(given: Namespace, built: Namespace) -> "tuple[Generated, dict[str, Any]]":
    """The images, and what is said of them.

    Raises:
        ValueError: For none, or for two.
    """
    from robustguide.data.generated import open_samples

    if (given.images is None) == (given.data is None):
        raise ValueError(
            "Give the real images: either DATA (a folder, .npz or shards), or a data module by "
            "--data or --config."
        )
    if given.images is not None:
        told = {"data": given.images, "split": given.split, "recipe": given.recipe}
        return open_samples(given.images), told
    images, split = of_module(built.data, given.split, given.workers)
    data, recipe = described(plain(given.data))
    return images, {"data": data, "split": split, "recipe": given.recipe or recipe}


def of_module(data: Any, split: str | None, workers: int) -> "tuple[Generated, str]":
    """Real images of a data module, and their split.

    Raises:
        ValueError: If it has none.
    """
    from robustguide.data import Images, SeedData, ShardImages
    from robustguide.data.generated import Real, RealShards

    if isinstance(data, ShardImages):
        return RealShards(data.manifest, split or "train", workers), split or "train"
    if isinstance(data, SeedData):
        split, source = split or data.reference_split, data.reference_source
        if source is None:
            raise ValueError(
                "This configuration samples and names no real images; set data.reference to a "
                "source of images."
            )
        return Real(source, split, workers), split
    if not isinstance(data, Images):
        raise ValueError(
            f"{type(data).__name__} is no data module of images; give Images or ShardImages."
        )
    return Real(data.source, split or "train", workers), split or "train"


def described(data: dict[str, Any]) -> tuple[str, str]:
    """Name of a data set and how its images are made; where its files lie does not matter."""
    arguments = data.get("init_args", {})
    source = arguments.get("source") or arguments.get("reference")
    if source is None:  # shards tell of themselves, and Images has digits by default
        own = data["class_path"].rpartition(".")[2]
        source = {"class_path": "Digits"} if own != "ShardImages" else data
    name = source["class_path"].rpartition(".")[2]
    told = {k: v for k, v in source.get("init_args", {}).items() if k != "root" and v is not None}
    shown = ", ".join(f"{key}={json.dumps(value)}" for key, value in sorted(told.items()))
    return name, f"{source['class_path']}({shown})"


def measured(given: Namespace, images: "Generated", told: dict[str, Any]) -> "Reference":
    """Measures with a bar."""
    import torch

    from robustguide.checkpoints.extractors import load_extractor
    from robustguide.data.statistics import statistics
    from robustguide.metrics.protocols import protocol
    from robustguide.metrics.reference import Provenance

    wanted = protocol(given.protocol)
    device = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
    extractor = load_extractor(wanted, given.weights, class_names=images.class_names)
    kept = wanted.activations if given.activations is None else given.activations
    with bar("features", images.count, Console()) as tell:
        return statistics(
            images,
            extractor.to(device),
            wanted,
            Provenance(**told),
            kept,
            given.batch_size,
            tell,
        )


def default_place(data: str, split: str | None, protocol: str) -> Path:
    """Where statistics go that are not told where."""
    parts = [Path(data.rstrip("/")).stem or "images", *([split] if split else []), protocol]
    return Path(FOLDER, "_".join(parts) + ".safetensors")


def show(reference: "Reference", out: str | Path) -> None:
    """Prints what was measured and where it is."""
    table = Table("layer", "features", "images", "trace of covariance", "activations", box=None)
    few = []
    for layer in sorted({*reference.moments, *reference.activations}):
        moments, kept = reference.moments.get(layer), reference.activations.get(layer)
        row = ["", "", ""]
        if moments is not None:
            trace = float(moments.covariance.trace())
            row = [str(len(moments.mean)), str(moments.count), f"{trace:.6g}"]
            if moments.count is not None and moments.count <= len(moments.mean):
                few.append(layer)
        table.add_row(layer, *row, str(len(kept)) if kept is not None else "0")
    Console().print(table)
    for layer in few:
        print(f"{layer}: no more images than features, so the covariance is singular.")
    about = reference.provenance
    split = f" ({about.split})" if about.split else ""
    print(f"{out}: {about.data}{split} by {reference.protocol}, digest {reference.digest()}")
    print(f"  features of {reference.identity}")
