"""`robustguide convert`: a published file as safetensors that describe themselves."""

from pathlib import Path

from jsonargparse import ArgumentParser

from robustguide.commands.formatter import Formatter

EXAMPLES = """examples:
  robustguide convert adm-imagenet256 256x256_diffusion.pt
  robustguide convert edm-imagenet-64x64-cond-adm edm.pkl --output edm64.safetensors
  robustguide convert kawar-imagenet128-classifier model299999.pt

Nothing that the file holds is run. Its tensors are written bit for bit."""


def run(args: list[str]) -> int:
    """Converts one file."""
    parser = ArgumentParser(
        prog="robustguide convert", description=__doc__, epilog=EXAMPLES, formatter_class=Formatter
    )
    parser.add_argument("name", type=str, help="card of the file; `robustguide cards` lists them")
    parser.add_argument("path", type=str, help="the published file")
    parser.add_argument(
        "--output", type=str, default=None, help="new file; by default in the cache"
    )
    options = parser.parse_args(args)
    from robustguide.cards import card
    from robustguide.checkpoints.convert import convert

    of = card(options.name)
    written = convert(of, options.path, options.output)
    size = Path(written).stat().st_size / 1e6
    print(f"{written}: {size:.1f} MB, card {of.name}. Terms of the weights: {of.licence}.")
    return 0
