"""Classifiers of one command line, `NAME=CLASSIFIER@VIEW` each, as directions of guidance.

    FILE                          a checkpoint
    card:NAME                     a published checkpoint
    FILE.yaml with `classifier`   any class path: an off-the-shelf network, Smooth, Decoded, ...
    FILE.yaml with `model`        what that configuration guides with, its own denoiser included

The name may be left out, and so may the view, which is the noisy image. A column of an atlas is
a term of guidance at each noise level, so that what is drawn is what a sampler would add.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import yaml

from robustguide.denoisers import Unconditional
from robustguide.guidance import ClassifierFree, ClassifierGuidance, Guidance
from robustguide.guidance.fit import check_gradient, check_names, shown
from robustguide.interfaces import Denoiser
from robustguide.plans.candidates import Candidate, Look, of_checkpoint, of_config
from robustguide.plans.ranking import Grid, Parts, Setting
from robustguide.specification import Specification

CARD = "card:"
VIEWS = {
    "x": "AtState",
    "normalized": "AtNormalizedState",
    "denoised": "AtDenoised",
    "through": "ThroughDenoiser",
}
NEED_DENOISER = ("denoised", "through")
CLASSIFIER_FREE = "classifier-free"


@dataclass(frozen=True)
class Column:
    """A direction at every noise level.

    Attributes:
        name: For people.
        terms: Of guidance, one a level.
        denoiser: What they ask; null where they ask none.
        clips: Bound of the denoised image that score terms are shown, one a level; null does not
            clip.
    """

    name: str
    terms: tuple[Guidance, ...]
    denoiser: Denoiser | None = None
    clips: tuple[float | None, ...] = ()

    def clip(self, place: int) -> float | None:
        """At the level of a number."""
        return self.clips[place] if self.clips else None

    def to(self, device: torch.device) -> None:
        """Moves the networks."""
        for module in (*self.terms, *([] if self.denoiser is None else [self.denoiser])):
            module.to(device)


@dataclass(frozen=True)
class Word:
    """What the command line says of a classifier."""

    name: str
    source: str
    view: str | None


def read(text: str) -> Word:
    """Takes `NAME=CLASSIFIER@VIEW` apart.

    Raises:
        ValueError: A part is empty.
    """
    name, equals, rest = text.partition("=")
    if not equals or "/" in name:
        name, rest = "", text
    source, at, view = rest.rpartition("@")
    if not at or view not in VIEWS:
        source, view = rest, ""
    if not source or (equals and not name and text.startswith("=")):
        raise ValueError(
            f"{text!r} names no classifier; give NAME=FILE, NAME=card:CARD or NAME=FILE.yaml."
        )
    return Word(name or title(source), source, view or None)


def title(source: str) -> str:
    """A short name; that of the folder, where the file's says nothing."""
    path = Path(source.removeprefix(CARD))
    return path.parent.name if path.stem == "classifier" and path.parent.name else path.stem


def named(texts: Sequence[str]) -> list[Word]:
    """All of them, under names of their own.

    Raises:
        ValueError: Two have one name, or one has that of the classifier-free direction.
    """
    words = [read(text) for text in texts]
    names = [word.name for word in words]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or CLASSIFIER_FREE in names:
        raise ValueError(
            f"The name {(twice or [CLASSIFIER_FREE])[0]!r} is taken; give each classifier one of "
            "its own, such as plain=runs/demo/plain/classifier.safetensors."
        )
    return words


def loading(kind: str, source: str) -> Specification:
    """How a network is read from a file or by `card:NAME`."""
    is_card = source.startswith(CARD)
    arguments = {
        "path": None if is_card else source,
        "card": source.removeprefix(CARD) if is_card else None,
    }
    return {"class_path": f"robustguide.checkpoints.load_{kind}", "init_args": arguments}


def candidate(
    word: Word, denoiser: Specification | None, clip: float | None, base: Sequence[Path]
) -> Candidate:
    """The classifier of a word.

    Args:
        word: See the module.
        denoiser: For views of a denoised image.
        clip: Bound of that image; null does not clip.
        base: YAMLs that those with a `model` are read after.

    Raises:
        FileNotFoundError: No such YAML.
        ValueError: A view without a denoiser, or a YAML that names no classifier.
    """
    if word.view in NEED_DENOISER and denoiser is None:
        raise ValueError(
            f"{word.name} looks at the denoised image, which nobody makes; give --denoiser FILE, "
            "or leave out the view."
        )
    view = {"class_path": f"robustguide.guidance.{VIEWS[word.view or 'x']}"}
    if Path(word.source).suffix not in (".yaml", ".yml"):
        said = loading("classifier", word.source)["init_args"]
        return of_checkpoint(said["path"], said["card"], word.name, view, denoiser, clip)
    document = yaml.safe_load(Path(word.source).read_text()) or {}
    if "classifier" in document:
        return Candidate(word.name, (Look(document["classifier"], view, clip=clip),), denoiser)
    if not document.get("model"):
        raise ValueError(
            f"{word.source} has neither `classifier` nor `model`; give a class path under "
            "`classifier`, or a configuration that samples."
        )
    if word.view is not None:
        raise ValueError(
            f"{word.name}: {word.source} says itself where its classifier looks; leave out "
            f"@{word.view}."
        )
    return replace(of_config(Path(word.source), base), name=word.name)


def columns(
    candidates: Sequence[Candidate],
    levels: Sequence[float],
    shape: Sequence[int],
    class_names: Sequence[str],
    parts: Parts,
) -> list[Column]:
    """The candidates' directions; networks that several name are built once.

    Raises:
        ValueError: A part cannot be built, does not fit the data's images or classes, or has no
            gradient.
    """
    wrappers: dict[int, Denoiser] = {}
    made = []
    for each in candidates:
        setting = fitting(each, levels, shape, class_names, parts)
        for classifier in setting.classifiers:
            check_gradient(each.name, classifier, shape)
        made.append(column(each, setting, levels, wrappers))
    return made


def fitting(
    candidate: Candidate,
    levels: Sequence[float],
    shape: Sequence[int],
    class_names: Sequence[str],
    parts: Parts,
) -> Setting:
    """A candidate, built, that reads the data's images and counts their classes alike.

    Raises:
        ValueError: A part cannot be built, or does not fit.
    """
    try:
        setting = Setting(candidate, Grid(tuple(levels)), parts)
        setting.check(shape, class_names)
    except ValueError as error:
        name = "" if str(error).startswith(candidate.name) else f"{candidate.name}: "
        raise ValueError(f"{name}{error}") from error
    return setting


def column(
    candidate: Candidate, setting: Setting, levels: Sequence[float], wrappers: dict[int, Denoiser]
) -> Column:
    """A candidate's direction; one wrapper a denoiser, so that columns share its answers."""
    terms = {
        id(reader): ClassifierGuidance(
            reader.classifier, candidate.at(level).labels, reader.objective, reader.view
        )
        for reader, level in zip(setting.readers, levels, strict=True)
    }
    denoiser = setting.denoiser
    if isinstance(denoiser, Unconditional):
        denoiser = wrappers.setdefault(id(denoiser.denoiser), denoiser)
    return Column(
        setting.name,
        tuple(terms[id(reader)] for reader in setting.readers),
        denoiser,
        tuple(reader.clip for reader in setting.readers),
    )


def classifier_free(
    denoiser: Denoiser, levels: Sequence[float], shape: Sequence[int], class_names: Sequence[str]
) -> Column | None:
    """The direction of a conditional denoiser; null for one that knows no labels.

    Raises:
        ValueError: It makes other images, or counts other classes than the data.
    """
    if tuple(denoiser.shape) != tuple(shape):
        raise ValueError(
            f"The denoiser makes images of {shown(denoiser.shape)}, the data have {shown(shape)}; "
            "give --config with data in the denoiser's space, or a denoiser of the data's."
        )
    if not denoiser.num_classes or not denoiser.has_null:
        return None
    if denoiser.num_classes != len(class_names):
        raise ValueError(
            f"The denoiser knows {denoiser.num_classes} classes, the data have "
            f"{len(class_names)}; give a denoiser of the data's classes."
        )
    check_names("The data", class_names, denoiser)
    term = ClassifierFree().requires_grad_(False).eval()
    return Column(CLASSIFIER_FREE, (term,) * len(levels), denoiser)
