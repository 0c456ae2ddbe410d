"""Gradients of classifiers by noise level: their picture, their norms, and how they agree."""

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from robustguide.commands.directions import (
    NAMING,
    WIDTH,
    add_classifiers,
    candidates,
    class_of,
    device_of,
    digest,
    gathered,
    images,
)
from robustguide.commands.formatter import Formatter
from robustguide.commands.progress import bar

if TYPE_CHECKING:  # imports torch, which --help does not need
    from torch import Tensor

    from robustguide.data import Images, Samples
    from robustguide.plans.atlas import Measurement, Values
    from robustguide.plans.columns import Column
    from robustguide.specification import Specification

EXAMPLES = (
    NAMING
    + """
examples:
  robustguide atlas plain=runs/demo/plain/classifier.safetensors \\
    robust=runs/demo/robust/classifier.safetensors --config configs/overlay/digits.yaml \\
    --denoiser runs/demo/denoiser/denoiser.safetensors --class 3 --folder runs/atlas

  a classifier of clean images beside them:
  robustguide atlas ... clean=runs/digits_clean/classifier.safetensors@denoised ...

It writes atlas.png, curves.png, atlas.json and atlas.html. The classifier-free direction is the
exact gradient of log p(y | x) for an exact denoiser alone; a learned one errs, too.
exit code: 0 when all was measured, 1 for an input that cannot be
"""
)


def run(args: list[str]) -> int:
    """Reads the command line, measures, draws and writes."""
    words = gathered(args)
    arguments = parser(words)
    given = arguments.parse_args(words)
    data, described = images(arguments, given)
    from robustguide.plans.atlas import Measurement

    measurement = Measurement(
        tuple(given.levels or Measurement().levels), given.seed, given.cutoff
    )
    made, identities = opened(given, data, measurement.levels)
    split = data.split(given.split)
    shown = chosen(given, split, data.class_names)  # before the long part
    values = measured(made, split, measurement, given)
    document = told(values, identities, measurement, split, given, described)
    document["picture"] = {
        "image": shown[0],
        "class": shown[2],
        "class_name": data.class_names[shown[2]],
        "image_class_name": data.class_names[shown[1]],
    }
    report(document, made, split, measurement, given)
    return 0


def parser(words: Sequence[str]) -> ArgumentParser:
    """The arguments; see `add_object`."""
    arguments = ArgumentParser(
        prog="robustguide atlas", description=__doc__, epilog=EXAMPLES, formatter_class=Formatter
    )
    add = arguments.add_argument
    add_classifiers(arguments, words)
    add(
        "--denoiser",
        type=str,
        metavar="FILE",
        default=None,
        help="or card:NAME; makes denoised images and the classifier-free direction",
    )
    add("--class", type=str, default=None, help="number or name, of the picture; its image's own")
    add("--image", type=int, default=0, help="number in the split, of the picture")
    add("--levels", type=float, nargs="+", metavar="SIGMA", help="rising; those of `fit`")
    add("--count", type=int, default=200, help="images, evenly spread over the split")
    add("--split", choices=["test", "validation"], default="test", help="of the data")
    add("--cutoff", type=float, default=0.5, help="of low frequencies, over Nyquist's")
    add("--seed", type=int, default=0, help="of the noise")
    return arguments


def opened(
    given: Namespace, data: "Images", levels: Sequence[float]
) -> "tuple[list[Column], list[dict[str, Any]]]":
    """The directions on their device, and what tells each again."""
    from robustguide.interfaces import Denoiser
    from robustguide.plans import columns
    from robustguide.plans.candidates import plain as hashed
    from robustguide.plans.ranking import Parts

    said = columns.loading("denoiser", given.denoiser) if given.denoiser else None
    asked, parts = candidates(given, data.shape, said), Parts()
    made = columns.columns(asked, levels, data.shape, data.class_names, parts)
    identities = [each.setting() for each in asked]
    if said is not None:
        denoiser = parts(Denoiser, said)
        direction = columns.classifier_free(denoiser, levels, data.shape, data.class_names)
        if direction is None:
            print(
                "The denoiser knows no labels or no null label, so there is no classifier-free "
                "direction to compare with."
            )
        else:
            made.append(direction)
            identities.append(hashed({"denoiser": said}))
    for column in made:
        column.to(device_of(given))
    return made, identities


def chosen(given: Namespace, split: "Samples", names: Sequence[str]) -> tuple[int, int, int]:
    """Number and class of the image of the picture, and the class that its gradients lead to.

    Raises:
        ValueError: There is no such image or class.
    """
    if not 0 <= given.image < len(split):
        raise ValueError(
            f"--image {given.image} is not in the {given.split} split, which has 0 to "
            f"{len(split) - 1}."
        )
    own = split[given.image][1]
    wanted = getattr(given, "class")
    return given.image, own, own if wanted is None else class_of(wanted, names)


def measured(
    columns: "Sequence[Column]", split: "Samples", measurement: "Measurement", given: Namespace
) -> "Values":
    """Measures with a bar."""
    from robustguide.data.loaders import EvaluationLoader
    from robustguide.plans import atlas

    batches = EvaluationLoader(split, given.batch_size, limit=given.count)
    count = min(given.count, len(split))
    with bar("differentiating", count, Console()) as advance:
        return atlas.measured(columns, batches, measurement, device_of(given), advance)


def told(
    values: "Values",
    identities: Sequence[dict[str, Any]],
    measurement: "Measurement",
    split: "Samples",
    given: Namespace,
    described: "Specification",
) -> dict[str, Any]:
    """What was measured, as plain data."""
    from robustguide.machine.packages import version_of
    from robustguide.plans import atlas
    from robustguide.plans.columns import CLASSIFIER_FREE

    first = next(iter(values.values()))
    directions = [
        {
            "name": name,
            "kind": "classifier_free" if name == CLASSIFIER_FREE else "classifier",
            "digest": digest(asked),
            "asked": asked,
            "measured": atlas.told(found),
            "minus_first": atlas.differences(found, first),
        }
        for (name, found), asked in zip(values.items(), identities, strict=True)
    ]
    low = atlas.radial_frequencies(*split.shape[1:]) < measurement.cutoff
    packages = ("robustguide", "torch", "numpy")
    return {
        "levels": list(measurement.levels),
        "seed": measurement.seed,
        "cutoff": measurement.cutoff,
        "n": int(first["norm"].shape[1]),
        "split": given.split,
        "data": described,
        "white_share": float(low.double().mean()),
        "has_direction": CLASSIFIER_FREE in values,
        "directions": directions,
        "versions": {name: version_of(name) for name in packages},
    }


def report(
    document: dict[str, Any],
    columns: "Sequence[Column]",
    split: "Samples",
    measurement: "Measurement",
    given: Namespace,
) -> None:
    """Draws, writes and prints."""
    import torch

    from robustguide.files import whole
    from robustguide.plans import atlas
    from robustguide.report import atlas as told_to_people
    from robustguide.report import save

    number, wanted = document["picture"]["image"], document["picture"]["class"]
    x_0: Tensor = split[number][0][None]
    index = torch.tensor([number])
    x, found = atlas.drawn(columns, x_0, index, wanted, measurement, device_of(given))
    folder = Path(given.folder)
    figure = told_to_people.picture(x, found, document)
    save(figure, folder / "atlas.png")
    save(told_to_people.curves(document), folder / "curves.png")
    with whole(folder / "atlas.json") as part:
        part.write_text(json.dumps(document, indent=1, allow_nan=False))
    page = told_to_people.write(document, figure, folder / "atlas.html")
    shown = told_to_people.table(document)
    Console().print(shown.narrow())
    print("\n" + textwrap.fill(shown.caption, WIDTH))
    print(f"Atlas: {page}, with atlas.png, curves.png and atlas.json beside it")
