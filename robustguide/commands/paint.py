"""Images that a classifier makes alone, by ascent on its log-probability: no diffusion model."""

import json
import textwrap
from collections.abc import Mapping, Sequence
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

    from robustguide.data import Images
    from robustguide.interfaces import Classifier
    from robustguide.plans.painting import Painting, Recipe
    from robustguide.specification import Specification

EXAMPLES = (
    NAMING
    + """A classifier paints alone, so it looks at the noisy image itself; a level of 0 is for one
of clean images.

examples:
  robustguide paint plain=runs/demo/plain/classifier.safetensors \\
    robust=runs/demo/robust/classifier.safetensors --config configs/overlay/digits.yaml \\
    --judge runs/demo/judge/classifier.safetensors --count 20 --folder runs/paint

  from grey, two classes, at falling noise:
  robustguide paint ... --classes 3 8 --start grey --level 1 0.5 0.2 --folder runs/paint

It writes painting.png, of the first start of each class, and painting.json.
exit code: 0 when all was painted, 1 for an input that cannot be
"""
)


def run(args: list[str]) -> int:
    """Reads the command line, paints and writes."""
    words = gathered(args)
    arguments = parser(words)
    given = arguments.parse_args(words)
    data, described = images(arguments, given)
    from robustguide.plans.painting import Recipe

    recipe = Recipe(tuple(given.level), given.steps, given.radius, given.step_size)
    names = data.class_names
    classes = [class_of(word, names) for word in given.classes or names]
    classifiers, identities = opened(given, data)
    judge = judged_by(given, data, identities)
    start = starts(given, data, classes)
    painted = {
        name: paint(classifier, start, classes, recipe, given, name)
        for name, classifier in classifiers.items()
    }
    document = told(painted, identities, classes, recipe, given, data, described)
    begun = start.flatten(0, 1)
    for each, made in zip(document["painted"], painted.values(), strict=True):
        each["moved"] = float((made.x_0 - begun).flatten(1).norm(dim=1).mean())
        if judge is not None:
            each["judge_accuracy"] = judged(judge, made.x_0, classes, given)
    if judge is not None:
        document["start_judge_accuracy"] = judged(judge, begun, classes, given)
    report(document, start, painted, given)
    return 0


def parser(words: Sequence[str]) -> ArgumentParser:
    """The arguments; see `add_object`."""
    arguments = ArgumentParser(
        prog="robustguide paint", description=__doc__, epilog=EXAMPLES, formatter_class=Formatter
    )
    add = arguments.add_argument
    add_classifiers(arguments, words)
    add("--classes", type=str, nargs="+", metavar="K", help="numbers or names; all")
    add("--level", type=float, nargs="+", default=[0.5], metavar="SIGMA", help="falling")
    add("--steps", type=int, default=200, help="of ascent, all levels together")
    add("--radius", type=float, default=None, help="L2 of the ball; half a unit a pixel")
    add("--step-size", type=float, default=None, help="L2; 2.5 * radius / steps")
    add(
        "--start",
        choices=["gaussian", "noise", "grey"],
        default="gaussian",
        help="drawn from the Gaussian of the class's training images, unit noise, or grey",
    )
    add("--start-images", type=int, default=500, help="training images a class of the Gaussian")
    add("--count", type=int, default=1, help="starts, the same for each class")
    add("--seed", type=int, default=0, help="of starts and of the noise of steps")
    add("--judge", type=str, metavar="FILE", default=None, help="another classifier's file")
    return arguments


def opened(
    given: Namespace, data: "Images"
) -> "tuple[dict[str, Classifier], list[dict[str, Any]]]":
    """Classifiers by name on their device, and what tells each again.

    Raises:
        ValueError: One looks at a denoised image, or does not fit the data.
    """
    from robustguide.guidance import AtState
    from robustguide.guidance.fit import check_gradient
    from robustguide.plans.columns import fitting
    from robustguide.plans.ranking import Parts

    asked = candidates(given, data.shape, None)
    parts, found = Parts(), {}
    for each in asked:
        setting = fitting(each, given.level, data.shape, data.class_names, parts)
        for classifier in setting.classifiers:
            check_gradient(each.name, classifier, data.shape)
        readers = setting.readers
        plain = all(isinstance(reader.view, AtState) for reader in readers)
        if not plain or len(setting.classifiers) != 1 or readers[0].labels.table is not None:
            raise ValueError(
                f"{each.name} cannot paint alone: it looks at something else than the noisy "
                "image, or is made of several classifiers; give the file of one, without a view."
            )
        found[each.name] = setting.classifiers[0].to(device_of(given))
    return found, [each.setting() for each in asked]


def judged_by(
    given: Namespace, data: "Images", identities: Sequence[Mapping[str, Any]]
) -> "Classifier | None":
    """The judge on its device; null where none is given.

    Raises:
        ValueError: It painted itself, or does not fit the data.
    """
    if given.judge is None:
        return None
    from robustguide.guidance import AtState
    from robustguide.plans import columns
    from robustguide.plans.ranking import Parts

    word = columns.Word("judge", given.judge, None)
    asked = columns.candidate(word, None, None, [])
    own = asked.setting()["looks"][0]["classifier"]
    if any(own == look["classifier"] for each in identities for look in each["looks"]):
        raise ValueError(
            f"--judge {given.judge} is one of the painting classifiers, which would judge itself; "
            "give one that was trained apart."
        )
    setting = columns.fitting(asked, [0.0], data.shape, data.class_names, Parts())
    assert isinstance(setting.readers[0].view, AtState)
    return setting.classifiers[0].to(device_of(given))


def starts(given: Namespace, data: "Images", classes: Sequence[int]) -> "Tensor":
    """Clean images (k, n, c, h, w), the same for all classifiers."""
    from robustguide.data.loaders import EvaluationLoader
    from robustguide.plans import painting

    if given.start != "gaussian":
        same = painting.plain_starts(given.start, given.seed, given.count, data.shape)
        return same.expand(len(classes), *same.shape)
    split, limit = data.split("train"), given.start_images * data.num_classes
    batches = EvaluationLoader(split, given.batch_size, limit=limit)
    return painting.gaussian_starts(batches, classes, given.seed, given.count)[0]


def paint(
    classifier: "Classifier",
    start: "Tensor",
    classes: Sequence[int],
    recipe: "Recipe",
    given: Namespace,
    name: str,
) -> "Painting":
    """All classes and starts, on the host, a batch at a time with a bar."""
    import torch

    from robustguide.plans import painting

    device, count = device_of(given), start.shape[1]
    rows = start.flatten(0, 1)
    numbers = list(range(count)) * len(classes)
    y = torch.tensor(list(classes)).repeat_interleave(count)
    parts = []
    with bar(name, len(rows), Console()) as advance:
        for first in range(0, len(rows), given.batch_size):
            some = slice(first, first + given.batch_size)
            shown = rows[some].to(device), y[some].to(device), numbers[some], given.seed
            parts.append(painting.painted(classifier, *shown, recipe))
            advance(len(shown[0]))
    return painting.Painting(
        *(
            torch.cat([getattr(part, key) for part in parts]).cpu()
            for key in ("x_0", "before", "after")
        )
    )


def told(
    painted: "Mapping[str, Painting]",
    identities: Sequence[dict[str, Any]],
    classes: Sequence[int],
    recipe: "Recipe",
    given: Namespace,
    data: "Images",
    described: "Specification",
) -> dict[str, Any]:
    """What was painted, as plain data."""
    from robustguide.machine.packages import version_of

    radius, step_size = recipe.sizes(data.shape)
    rows = [
        {
            "name": name,
            "digest": digest(asked),
            "asked": asked,
            "log_p_before": float(made.before.mean()),
            "log_p_after": float(made.after.mean()),
            "log_p": {
                "before": made.before.reshape(len(classes), -1).tolist(),
                "after": made.after.reshape(len(classes), -1).tolist(),
            },
            "judge_accuracy": None,
        }
        for (name, made), asked in zip(painted.items(), identities, strict=True)
    ]
    return {
        "classes": [{"class": k, "name": data.class_names[k]} for k in classes],
        "levels": list(recipe.levels),
        "steps": recipe.steps,
        "radius": radius,
        "step_size": step_size,
        "start": given.start,
        "count": given.count,
        "n": given.count * len(classes),
        "seed": given.seed,
        "judge": given.judge,
        "start_judge_accuracy": None,
        "data": described,
        "painted": rows,
        "versions": {name: version_of(name) for name in ("robustguide", "torch", "numpy")},
    }


def judged(
    judge: "Classifier", x_0: "Tensor", classes: Sequence[int], given: Namespace
) -> dict[str, Any]:
    """Share of images in which the judge sees the wanted class."""
    import torch

    from robustguide.metrics import wilson_limits

    y = torch.tensor(list(classes)).repeat_interleave(given.count)
    seen = []
    with torch.no_grad():
        for first in range(0, len(x_0), given.batch_size):
            shown = x_0[first : first + given.batch_size].to(device_of(given))
            seen.append(judge(shown, shown.new_zeros(len(shown))).argmax(-1))
    right = (torch.cat(seen).cpu() == y).double()
    low, high = wilson_limits(right.sum(), torch.tensor(float(len(y)), dtype=torch.float64))
    of_class = right.reshape(len(classes), -1).mean(1)
    return {
        "value": float(right.mean()),
        "limits": [float(low), float(high)],
        "of_class": of_class.tolist(),
        "n": len(y),
    }


def report(
    document: dict[str, Any],
    start: "Tensor",
    painted: "Mapping[str, Painting]",
    given: Namespace,
) -> None:
    """Draws, writes and prints."""
    from robustguide.files import whole
    from robustguide.report import painting, save

    folder, k = Path(given.folder), len(document["classes"])
    first = {
        name: made.x_0.reshape(k, -1, *made.x_0.shape[1:])[:, 0] for name, made in painted.items()
    }
    picture = save(painting.sheet(start[:, 0], first, document), folder / "painting.png")
    with whole(folder / "painting.json") as part:
        part.write_text(json.dumps(document, indent=1, allow_nan=False))
    shown = painting.table(document)
    Console().print(shown.narrow())
    print("\n" + textwrap.fill(shown.caption, WIDTH))
    print(f"Painting: {picture}, with painting.json beside it")
