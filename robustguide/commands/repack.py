"""Samples in another form: a folder of PNG files, an .npz file of ADM's evaluator, or shards."""

from jsonargparse import ArgumentParser
from rich.console import Console

from robustguide.commands.formatter import Formatter
from robustguide.commands.progress import bar

EXAMPLES = """examples:
  robustguide repack runs/images samples.npz
  robustguide repack samples.npz samples.tar
  robustguide repack runs/images shards --kind shards --per-shard 5000
  robustguide repack 'shards/*.tar' folder/

Images, labels, numbers, seeds and what is told of the method stay the same. The new place has its
name only when everything is written; nothing is overwritten."""


def run(args: list[str]) -> int:
    """Writes samples again."""
    parser = ArgumentParser(
        prog="robustguide repack", description=__doc__, epilog=EXAMPLES, formatter_class=Formatter
    )
    parser.add_argument("source", type=str, metavar="SRC", help="folder, .npz or shards")
    parser.add_argument("target", type=str, metavar="DST", help="new folder, .npz or .tar file")
    parser.add_argument(
        "--kind", type=str, default=None, help="folder, npz or shards; by the name of DST"
    )
    parser.add_argument("--per-shard", type=int, default=1000, help="samples in a tar file")
    given = parser.parse_args(args)
    from robustguide.data.generated import open_samples, write_samples

    samples = open_samples(given.source)
    with bar("writing", samples.count, Console()) as tell:
        write_samples(samples, given.target, given.kind, tell, given.per_shard)
    c, h, w = samples.shape
    labels = "no classes" if samples.class_names is None else f"{len(samples.class_names)} classes"
    print(f"{given.target}: {samples.count} samples of {w} x {h} x {c}, {labels}")
    return 0
