"""Measures a classifier before and after its ReLUs become Softplus, on images without noise."""

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

from robustguide.commands.formatter import Formatter
from robustguide.commands.objects import add_object

if TYPE_CHECKING:  # imports torch, which --help does not need
    from torch import Tensor

    from robustguide.classifiers import Smooth
    from robustguide.data import Images
    from robustguide.interfaces import Classifier
    from robustguide.specification import Specification

BETAS = [3.0, 5.0]  # of EluCD's two samplers
SPLITS = {"validation": "val_dataloader", "test": "test_dataloader"}
EXAMPLES = """examples:
  robustguide smooth runs/digits/classifier.safetensors --config configs/overlay/digits.yaml

  robustguide smooth --card resnet50 --beta 8 --beta 5 --beta 3 \\
    --config configs/overlay/imagenet.yaml --data.source.size 224

  robustguide smooth --classifier robustguide.checkpoints.torchvision_classifier \\
    --classifier.name resnet50 --classifier.weights resnet50-11ad3fa6.pth \\
    --classifier.preprocess raw --beta 3 --out resnet50_beta3.safetensors \\
    --config configs/overlay/imagenet.yaml --data.source.size 128 --data.eval_limit 5000

Of a configuration only `data` is read. A smooth classifier is named in one as
  classifier:
    class_path: robustguide.classifiers.Smooth
    init_args: {beta: 3, classifier: ...}
"""


class Result(NamedTuple):
    """How many of `images` were classified rightly; beta is null for the ReLUs."""

    beta: float | None
    right: int
    images: int


def run(args: list[str]) -> int:
    """Reads the command line, measures, and writes the checkpoint that was asked for."""
    arguments = parser(args)
    given = arguments.parse_args(gathered(args))
    betas = sorted(set(given.beta), reverse=True)
    check(given, betas)
    built = arguments.instantiate(given)
    classifier, specification = loaded(built, given)
    smooth = replaced(classifier, betas, built.data)
    if given.out:
        from robustguide.checkpoints import verify

        verify(smooth[0], described(specification, betas[0]))  # before the long part
    results = measured([classifier, *smooth], [None, *betas], built)
    print(f"{given.split} images without noise, n = {results[0].images}")
    Console().print(table(results))
    if given.out:
        write(given.out, smooth[0], described(specification, betas[0]), results, built.data)
        print(f"{given.out}: Softplus with beta {betas[0]:g}")
    return 0


def parser(words: Sequence[str]) -> ArgumentParser:
    """The arguments; see `add_object`."""
    arguments = ArgumentParser(
        prog="robustguide smooth",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=Formatter,
    )
    add = arguments.add_argument
    add("path", type=str, nargs="?", help="file of a classifier")
    add("--card", type=str, default=None, help="card of a published classifier")
    base, what = "robustguide.interfaces.Classifier", "class path, instead of a file"
    add_object(arguments, words, "--classifier", base, what, default=None)
    add(
        "--beta", type=list[float], default=BETAS, metavar="B", help="of Softplus; may be repeated"
    )
    add("--config", type=str, metavar="FILE", help="YAML with `data`; a later one goes over it")
    base, what = "robustguide.data.Images", "labelled images"
    add_object(arguments, words, "--data", base, what, default=None)
    add("--split", choices=list(SPLITS), default="validation", help="which of them")
    add("--out", type=str, metavar="FILE", default=None, help="write the smooth classifier")
    add("--device", type=str, default=None, help="cuda where there is one, else cpu")
    return arguments


def gathered(args: list[str]) -> list[str]:
    """One word for all betas, and one for what each configuration says of data.

    The rest of a configuration is for a trainer.

    Raises:
        FileNotFoundError: No such file.
    """
    words = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    words.add_argument("--config", action="append", default=[])
    words.add_argument("--beta", action="append", default=[])
    known, rest = words.parse_known_args(args)
    documents = [yaml.safe_load(Path(file).read_text()) or {} for file in known.config]
    data = [f"--data={json.dumps(each['data'])}" for each in documents if "data" in each]
    return [*data, *([f"--beta=[{','.join(known.beta)}]"] if known.beta else []), *rest]


def check(given: Namespace, betas: Sequence[float]) -> None:
    """Whether there is enough to begin, and not too much.

    Raises:
        ValueError: There is not.
    """
    if (given.classifier is None) == (given.path is None and given.card is None):
        raise ValueError("Give the file of a classifier, or --card, or --classifier; one of them.")
    if given.data is None:
        raise ValueError(
            "Give the images to classify, such as --config configs/overlay/digits.yaml or "
            "--data robustguide.data.Images."
        )
    if given.out and len(betas) != 1:
        raise ValueError(f"--out writes one classifier, but beta is {listed(betas)}; give one.")


def listed(betas: Iterable[float]) -> str:
    """Betas for people."""
    return ", ".join(f"{beta:g}" for beta in betas)


def loaded(built: Namespace, given: Namespace) -> "tuple[Classifier, Specification]":
    """The classifier in evaluation mode, and how it is built."""
    from robustguide.checkpoints import load_classifier

    if built.classifier is None:
        classifier = load_classifier(built.path, built.card)
        return classifier, vars(classifier)["metadata"].specification
    frozen = built.classifier.eval().requires_grad_(False)
    return frozen, json.loads(json.dumps(given.classifier.as_dict()))


def described(specification: "Specification", beta: float) -> "Specification":
    """How the smooth classifier is built."""
    arguments = {"classifier": specification, "beta": beta}
    return {"class_path": "robustguide.classifiers.Smooth", "init_args": arguments}


def replaced(classifier: "Classifier", betas: Sequence[float], data: "Images") -> "list[Smooth]":
    """A smooth classifier for every beta, over the same weights.

    Raises:
        ValueError: No ReLU can be replaced, or the classifier is not one of the data's classes
            or images.
    """
    from robustguide.classifiers import Smooth, class_names, displaced
    from robustguide.modules.trial import try_classifier

    own = class_names(classifier)
    moved = [own[label] for label in displaced(own, data.class_names)]
    if classifier.num_classes != data.num_classes or moved:
        raise ValueError(
            f"The classifier knows {classifier.num_classes} classes, the data have "
            f"{data.num_classes}"
            + (f", and count {moved[0]!r} otherwise" if moved else "")
            + "; give data of its classes, or wrap it in robustguide.classifiers.Relabelled, "
            "whose `labels` are its class of every class of the data."
        )
    smooth = [Smooth(classifier, beta) for beta in betas]
    for each in (classifier, *smooth):
        try_classifier(each, data.shape)
    return smooth


def measured(
    classifiers: "Sequence[Classifier]", betas: Sequence[float | None], built: Namespace
) -> list[Result]:
    """Counts with a bar, in one pass over the images."""
    import torch

    device = built.device or ("cuda" if torch.cuda.is_available() else "cpu")
    for classifier in classifiers:
        classifier.to(device)
    batches = getattr(built.data, SPLITS[built.split])()
    console = Console()
    bar: Any = Progress(
        "classifying", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    )
    with bar if console.is_terminal else nullcontext():
        task = bar.add_task("classifying", total=len(batches))
        correct, count = counted(classifiers, batches, device, lambda: bar.advance(task))
    return [
        Result(beta, right, count) for beta, right in zip(betas, correct.tolist(), strict=True)
    ]


def counted(
    classifiers: "Sequence[Classifier]",
    batches: "Iterable[tuple[Tensor, Tensor, Tensor]]",
    device: str,
    advance: Callable[[], None],
) -> "tuple[Tensor, int]":
    """Images that each classifier names rightly, and the number of images."""
    import torch

    correct, count = torch.zeros(len(classifiers), dtype=torch.long, device=device), 0
    with torch.no_grad():
        for images, y, _ in batches:
            x_0, y = images.to(device), y.to(device)
            sigma = x_0.new_zeros(len(x_0))
            found = [classifier(x_0, sigma).argmax(-1) == y for classifier in classifiers]
            correct += torch.stack(found).sum(-1)
            count += len(x_0)
            advance()
    return correct, count


def table(results: Sequence[Result]) -> Table:
    """A row for the ReLUs and one for every beta."""
    made = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("activation", "top-1", "95 %", "change", "right"):
        made.add_column(heading, justify="left" if heading == "activation" else "right")
    before = results[0]
    for result in results:
        lower, upper = limits(result)
        change = 100 * (result.right - before.right) / before.images
        made.add_row(
            "ReLU" if result.beta is None else f"Softplus {result.beta:g}",
            f"{100 * result.right / result.images:.2f} %",
            f"{100 * lower:.1f} to {100 * upper:.1f}",
            "" if result.beta is None else f"{change:+.2f}",
            str(result.right),
        )
    return made


def limits(result: Result) -> tuple[float, float]:
    """95% interval of the accuracy."""
    import torch

    from robustguide.metrics import wilson_limits

    right, count = (torch.tensor(float(n), dtype=torch.float64) for n in result[1:])
    lower, upper = wilson_limits(right, count)
    return float(lower), float(upper)


def write(
    path: str,
    smooth: "Smooth",
    specification: "Specification",
    results: Sequence[Result],
    data: "Images",
) -> None:
    """Exports the smooth classifier; its header tells what was measured."""
    from robustguide.checkpoints import export

    told = getattr(smooth.classifier, "metadata", None)
    names = told.class_names if told is not None and told.class_names else data.class_names
    before, after = results
    accuracy = {"before": before.right, "after": after.right, "images": after.images}
    export(
        smooth,
        path,
        specification,
        class_names=names,
        shape=smooth.shape or data.shape,
        weights="raw" if told is None else told.weights,
        extra={**({} if told is None else told.extra), "right": accuracy},
    )
