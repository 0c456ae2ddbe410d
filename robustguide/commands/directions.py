"""What `robustguide atlas` and `robustguide paint` are told alike: classifiers, data, device."""

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from robustguide.commands.objects import add_object, data_words, plain

if TYPE_CHECKING:  # imports torch, which --help does not need
    from robustguide.data import Images
    from robustguide.plans.candidates import Candidate
    from robustguide.specification import Specification

WIDTH = 99  # of text
BASE = "configs/overlay/digits_generation.yaml"  # as `robustguide rank` has it
NAMING = """CLASSIFIER is the file of a classifier, card:NAME of a published one, or a YAML: with
`classifier`, any class path (an off-the-shelf network, Smooth, Decoded, ...); with `model`, what
that configuration guides with. NAME= may be left out. @VIEW after it says where it looks: @x at
the noisy image (left out), @normalized at it over its root mean square, @denoised at the denoised
image, @through at that through the denoiser, which --denoiser makes.
"""


def add_classifiers(arguments: ArgumentParser, words: Sequence[str]) -> None:
    """The classifiers, the data, and where to compute and write."""
    add = arguments.add_argument
    add("classifiers", nargs="+", type=str, metavar="NAME=CLASSIFIER", help="see below")
    add("--base", type=str, nargs="+", metavar="FILE", help="that YAMLs with `model` share")
    add("--config", type=str, metavar="FILE", help="YAML with `data`; a later one goes over it")
    add_object(arguments, words, "--data", "robustguide.data.Images", "images", default=None)
    add("--batch-size", type=int, default=64, help="images at a time")
    add("--device", type=str, default=None, help="cuda where there is one, else cpu")
    add("--folder", type=str, metavar="OUT", required=True, help="where everything goes")


def gathered(args: list[str]) -> list[str]:
    """One word for what each configuration says of data, ahead of the others.

    Raises:
        FileNotFoundError: No such file.
    """
    words = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    words.add_argument("--config", action="append", default=[])
    known, rest = words.parse_known_args(args)
    return data_words(known.config) + rest


def images(arguments: ArgumentParser, given: Namespace) -> "tuple[Images, Specification]":
    """The data, and how they are described.

    Raises:
        ValueError: There are none, or not one image or row is asked for.
    """
    if given.data is None:
        raise ValueError(
            "Give the images, such as --config configs/overlay/digits.yaml or --data "
            "robustguide.data.Images."
        )
    if given.count < 1 or given.batch_size < 1:
        raise ValueError(
            f"--count and --batch-size must be at least 1, got {given.count} and "
            f"{given.batch_size}."
        )
    return arguments.instantiate(given).data, plain(given.data)


def device_of(given: Namespace) -> Any:
    """Where networks go."""
    import torch

    return torch.device(given.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def candidates(
    given: Namespace, shape: Sequence[int], denoiser: "Specification | None"
) -> "list[Candidate]":
    """The classifiers of the command line; predicted images are clipped, latents are not."""
    from robustguide.guidance.fit import PIXELS
    from robustguide.plans import columns

    base = [Path(file) for file in given.base or [BASE]]
    clip = 1.0 if shape[0] in PIXELS else None
    return [
        columns.candidate(word, denoiser, clip, base) for word in columns.named(given.classifiers)
    ]


def class_of(word: str, names: Sequence[str]) -> int:
    """A class by its name, else by its number.

    Raises:
        ValueError: There is none.
    """
    if word in names:
        return list(names).index(word)
    if word.isdecimal() and int(word) < len(names):
        return int(word)
    raise ValueError(
        f"There is no class {word!r}; the data have 0 to {len(names) - 1}, called "
        f"{', '.join(names[:10])}{', ...' if len(names) > 10 else ''}."
    )


def digest(asked: dict[str, Any]) -> str:
    """Names a direction: the same files, view and objective have the same one."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:20]
