"""Encodes a set of images with a codec, once, as shards of latents that others train on."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from robustguide.commands.formatter import Formatter
from robustguide.commands.objects import add_object

EXAMPLES = """examples:
  robustguide encode --codec runs/fashion_mnist_autoencoder/codec.safetensors \\
    --source robustguide.data.FashionMNIST --source.size 32 --mirrored false \\
    --folder runs/fashion_mnist_latents

  robustguide encode --codec card:sd-vae-ft-ema --folder FOLDER/imagenet256_latents \\
    --source robustguide.data.Folder --source.root FOLDER/imagenet --source.size 256

  EDM2's latents of the same autoencoder are others:
  robustguide encode --codec robustguide.codecs.EDM2Codec \\
    --codec.autoencoder robustguide.checkpoints.load_autoencoder \\
    --codec.autoencoder.path FOLDER/sd-vae-ft-mse --source ... --folder ...

The same command goes on where it was stopped. Train on the latents with
  --data.source=robustguide.data.LatentShards --data.source.root=FOLDER
"""


def run(args: list[str]) -> int:
    """Reads the command line and encodes."""
    arguments = parser(args)
    given = arguments.parse_args(args)
    recipe = str(given.source.as_dict() if isinstance(given.source, Namespace) else given.source)
    built = arguments.instantiate(given)
    encode(built, recipe)
    return 0


def parser(words: Sequence[str]) -> ArgumentParser:
    """The arguments; see `add_object`."""
    arguments = ArgumentParser(
        prog="robustguide encode",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=Formatter,
    )
    arguments.add_argument("--config", action="config", help="arguments as a YAML file")
    what = "file that a run exported, card:NAME, folder in the layout of diffusers, or class path"
    codec = "robustguide.interfaces.Codec"
    add_object(arguments, words, "--codec", codec, what, takes_text=True, required=True)
    source = "robustguide.data.ImageSource"
    add_object(arguments, words, "--source", source, "set of images", required=True)
    arguments.add_argument("--folder", type=str, required=True, help="where the shards go")
    arguments.add_argument(
        "--dtype", choices=["float16", "float32"], default="float16", help="of the files"
    )
    arguments.add_argument(
        "--mirrored", type=bool, default=True, help="encode training images mirrored, too"
    )
    for name, default, what in (
        ("--per_shard", 4096, "images in a file"),
        ("--batch_size", 64, "images encoded at a time"),
        ("--num_workers", 0, "processes that read images"),
    ):
        arguments.add_argument(name, type=int, default=default, help=what)
    arguments.add_argument(
        "--device", type=str, default=None, help="cuda where there is one, else cpu"
    )
    return arguments


def encode(built: Namespace, recipe: str) -> None:
    """Encodes with a bar, and tells what there is now."""
    import torch

    from robustguide.checkpoints import load_codec
    from robustguide.codecs import KLCodec
    from robustguide.data import LatentWriter
    from robustguide.data.splits import SPLITS
    from robustguide.plans.columns import loading

    codec = built.codec
    if isinstance(codec, str):
        codec = load_codec(**loading("codec", codec)["init_args"])
    if not isinstance(codec, KLCodec):
        raise ValueError(
            f"A {type(codec).__name__} makes no latents; give a robustguide.codecs.KLCodec."
        )
    codec.to(built.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    total = sum(len(built.source.split(name)) for name in SPLITS)
    console = Console()
    bar: Any = Progress(
        "encoding", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    )
    with bar if console.is_terminal else nullcontext():
        task = bar.add_task("encoding", total=total)
        writer = LatentWriter(
            codec,
            getattr(torch, built.dtype),
            built.mirrored,
            built.per_shard,
            built.batch_size,
            built.num_workers,
            lambda count: bar.advance(task, count),
        )
        manifest = writer.write(built.source, built.folder, recipe)
    counts = ", ".join(f"{manifest.count(name)} {name}" for name in SPLITS)
    print(f"{built.folder}: latents {list(manifest.shape)} of {counts} images")
