"""Calibration of many candidates in one pass over labelled images, and what they cost.

An image is noised to every level; each candidate reads the noisy image, or what its denoiser makes
of it without being told the label. Its probabilities are

    p(y | x) = softmax(tau f)

with the logits f and, for the objectives of Ma et al. (2023), eq. 4, tau = tau_1, the joint
temperature: eq. 4 for every class, made to sum to 1, since its second term is the same for all
classes. That reading is ours, here and in the search for these temperatures.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError, ArgumentParser
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from robustguide.classifiers import class_names, displaced
from robustguide.denoisers import Unconditional
from robustguide.files import whole
from robustguide.guidance import Evaluations, Objective, Step, Tempered, View, score
from robustguide.guidance.classifier import ClassLabels
from robustguide.guidance.fit import shown
from robustguide.interfaces import Classifier, Denoiser, Place
from robustguide.metrics import Answers, AnswersByLevel
from robustguide.modules.examination import evaluations
from robustguide.modules.trial import try_classifier
from robustguide.noise import LEVELS, perturb
from robustguide.plans.candidates import Candidate, Look, plain
from robustguide.samplers import evaluation_noise
from robustguide.specification import Specification

FORMAT = 1  # of what is kept: raise it where the same setting would be measured otherwise
Batch = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Grid:
    """What is measured.

    Attributes:
        levels: Noise levels.
        bins: Equal confidence bins.
        draws: Noises of each image.

    Raises:
        ValueError: For no level, one that is negative or not finite, or no bin or draw.
    """

    levels: tuple[float, ...] = LEVELS
    bins: int = 15
    draws: int = 1

    def __post_init__(self) -> None:
        if not self.levels or not all(0 <= level < float("inf") for level in self.levels):
            raise ValueError(
                f"--levels must be finite noise levels of at least 0, got {list(self.levels)}."
            )
        if self.bins < 1 or self.draws < 1:
            raise ValueError(
                f"--bins and --draws must be at least 1, got {self.bins} and {self.draws}."
            )


class Parts:
    """Builds from specifications, each once, so that candidates share their networks."""

    def __init__(self) -> None:
        self.made: dict[str, Any] = {}

    def __call__(self, kind: Any, specification: Specification) -> Any:
        """The object.

        Raises:
            ValueError: It cannot be built.
        """
        key = kind.__name__ + json.dumps(specification)
        if key not in self.made:
            self.made[key] = built(kind, specification)
        return self.made[key]


def built(kind: Any, specification: Specification) -> Any:
    """An object of a kind, as a configuration would make it.

    Raises:
        ValueError: It cannot be built.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--part", type=kind)
    try:
        made = parser.instantiate(parser.parse_args([f"--part={json.dumps(specification)}"])).part
    except ArgumentError as error:
        raise ValueError(f"{specification['class_path']} cannot be built: {error}") from error
    return made.eval().requires_grad_(False) if isinstance(made, torch.nn.Module) else made


class Reader:
    """A classifier where it looks, with what makes probabilities of its logits.

    Args:
        look: Of a candidate.
        parts: Builds.
    """

    def __init__(self, look: Look, parts: Parts) -> None:
        self.classifier: Classifier = parts(Classifier, look.classifier)
        self.view: View = parts(View, look.view)
        objective = parts(Objective, look.objective) if look.objective else Tempered()
        self.objective: Objective = objective
        self.labels = ClassLabels(self.classifier, look.labels)
        self.clip, self.evaluations = look.clip, look.evaluations

    def shown(self, denoised: Tensor) -> Tensor:
        """The denoised image, clipped where the configuration clips."""
        return denoised if self.clip is None else denoised.clamp(-self.clip, self.clip)

    def logits(self, step: Step) -> Tensor:
        """Of the data's classes, times the temperature."""
        answers = self.view.ask(self.classifier, self.view.point(step), step.sigma)
        return factor(self.objective) * self.labels.chosen(answers).float()

    def flops(self, step: Step) -> int:
        """Of one gradient, classifier and pull back to the state, beside the denoised image."""

        def ask(images: Tensor, sigma: Tensor) -> Tensor:
            # not the leaf itself, on which the counter's hooks cannot be when it is differentiated
            return self.view.ask(self.classifier, images.view_as(images), sigma)

        with torch.set_grad_enabled(self.view.needs_graph):
            images = self.view.point(step)
        y = torch.zeros(len(images), dtype=torch.long)
        # the counter knows no attention of the CPU in one piece, which would count nothing
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            gradient = score(ask, images, step.sigma, y, self.objective)
            self.view.pull(step, gradient)
        return self.evaluations * int(counter.get_total_flops())


class Setting:
    """A candidate, built.

    Args:
        candidate: Any.
        grid: Its levels.
        parts: Builds.

    Raises:
        ValueError: A part cannot be built, or levels have no classifier or several.
    """

    def __init__(self, candidate: Candidate, grid: Grid, parts: Parts) -> None:
        looks = [candidate.at(level) for level in grid.levels]
        readers = {id(look): Reader(look, parts) for look in looks}
        self.name = candidate.name
        self.readers = [readers[id(look)] for look in looks]
        self.classifiers = list(dict.fromkeys(reader.classifier for reader in self.readers))
        self.denoiser: Denoiser | None = None
        if candidate.needs_denoiser() and candidate.denoiser is not None:
            self.denoiser = unlabelled(parts(Denoiser, candidate.denoiser))

    def check(self, shape: Sequence[int], names: Sequence[str]) -> None:
        """Compares classes and images with those of the data.

        Raises:
            ValueError: They differ.
        """
        theirs = shape if self.denoiser is None else self.denoiser.shape
        if tuple(theirs) != tuple(shape):
            raise ValueError(
                f"{self.name}: the denoiser makes images of shape {list(theirs)}, the data have "
                f"{list(shape)}; give --config with data in the denoiser's space."
            )
        for reader in self.readers:
            check_classes(self.name, reader, names)
        for classifier in self.classifiers:
            check_images(self.name, classifier, shape)

    def to(self, device: str) -> None:
        """Moves the networks."""
        if self.denoiser is not None:
            self.denoiser.to(device)
        for reader in self.readers:
            reader.classifier.to(device)
            reader.labels.to(device)

    def cost(self, shape: Sequence[int], levels: Sequence[float]) -> dict[str, float]:
        """FLOPs of a step's gradient at one image, mean over the levels; numbers of weights."""
        of_reader: dict[int, int] = {}
        for reader, level in zip(self.readers, levels, strict=True):
            if id(reader) not in of_reader:
                x = torch.zeros(1, *shape).requires_grad_(reader.view.needs_graph)
                step = Looked(level)(self.denoiser, reader, x)
                of_reader[id(reader)] = reader.flops(step)
        flops = [of_reader[id(reader)] for reader in self.readers]
        parameters = sum(p.numel() for one in self.classifiers for p in one.parameters())
        return {"flops": sum(flops) / len(flops), "parameters": parameters}


class Looked:
    """Steps at one level, of which those of one denoiser share its evaluations.

    Args:
        level: The noise level.
    """

    def __init__(self, level: float) -> None:
        self.level = level
        self.known: dict[int, tuple[Evaluations, Tensor]] = {}

    def __call__(self, denoiser: Denoiser | None, reader: Reader, x: Tensor) -> Step:
        """What a reader is shown of x; the denoiser is told no label."""
        sigma = x.new_full((len(x),), self.level)
        if id(denoiser) not in self.known:
            y = torch.zeros(len(x), dtype=torch.long, device=x.device)
            null = y if denoiser is None else denoiser.null(y)
            self.known[id(denoiser)] = evaluations(denoiser, x, sigma), null
        evaluate, null = self.known[id(denoiser)]
        return Step(x, sigma, null, null, Place(sigma=self.level), evaluate, reader.shown, {})


def unlabelled(denoiser: Denoiser) -> Denoiser:
    """One that is told no label, so that none leaks into the images that are classified.

    Raises:
        ValueError: It was trained with a label for every image.
    """
    return denoiser if isinstance(denoiser, Unconditional) else Unconditional(denoiser, 1)


def factor(objective: Objective) -> float:
    """What multiplies the logits, see above; 1 for objectives of other kinds."""
    return objective.joint if isinstance(objective, Tempered) else 1.0


def check_images(name: str, classifier: Classifier, shape: Sequence[int]) -> None:
    """Looks whether a classifier reads the data's images.

    Raises:
        ValueError: It says that it does not, or fails at a blank one.
    """
    if not classifier.reads(shape):
        own = "others" if classifier.shape is None else shown(classifier.shape)
        raise ValueError(
            f"{name}: the classifier reads images of {own}, the data have {shown(shape)}; give "
            "data of its channels and size (--data.source.channels and --data.source.size, where "
            "the source has them), or a YAML that wraps it in robustguide.classifiers.Resized or "
            "Decoded."
        )
    try:
        try_classifier(classifier, shape)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def check_classes(name: str, reader: Reader, names: Sequence[str]) -> None:
    """Compares classes with those of the data, by number and as far as both name them.

    Raises:
        ValueError: They differ.
    """
    own = class_names(reader.classifier) if reader.labels.table is None else ()
    moved = [own[label] for label in displaced(own, names)]
    if reader.labels.num_classes != len(names) or moved:
        raise ValueError(
            f"{name}: the classifier knows {reader.labels.num_classes} classes, the data have "
            f"{len(names)}"
            + (f", and count {moved[0]!r} otherwise" if moved else "")
            + "; give --config with data of its classes, or wrap it in "
            "robustguide.classifiers.Relabelled."
        )


def fingerprint(candidate: Candidate, grid: Grid, data: Specification) -> str:
    """Names a measurement: the same setting, files, images and grid have the same one."""
    images = plain(data)
    for name in ("batch_size", "eval_batch_size", "num_workers", "augment", "seed"):
        images.get("init_args", {}).pop(name, None)  # which change no answer
    said = [FORMAT, candidate.setting(), images, list(grid.levels), grid.bins, grid.draws]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:20]


def kept(folder: Path, name: str) -> dict[str, Any] | None:
    """A measurement that is there."""
    file = folder / f"{name}.json"
    found: dict[str, Any] | None = json.loads(file.read_text()) if file.is_file() else None
    return found


def keep(folder: Path, name: str, found: Mapping[str, Any]) -> None:
    """Writes a measurement."""
    with whole(folder / f"{name}.json") as part:
        part.write_text(json.dumps(found, indent=1))


@torch.no_grad()
def measured(
    settings: Mapping[str, Setting],
    batches: Iterable[Batch],
    num_classes: int,
    grid: Grid,
    device: str,
    advance: Callable[[], None],
) -> dict[str, AnswersByLevel]:
    """Answers of all settings, by name, in one pass over the images, to be computed."""
    metrics = {name: AnswersByLevel(len(grid.levels), num_classes, grid.bins) for name in settings}
    for setting in settings.values():
        setting.to(device)
    for images, y, index in batches:
        for draw in range(grid.draws):
            noise = drawn(images, index, draw).to(device)
            logits = answers(settings, images.to(device), noise, grid.levels)
            for name, found in logits.items():
                metrics[name].update(torch.stack(found), y.to(device), index, draw=draw)
        advance()
    return metrics


def drawn(images: Tensor, index: Tensor, draw: int) -> Tensor:
    """Noise that belongs to the images' numbers, as `Examination` draws it."""
    return evaluation_noise(index, draw).draw(images.shape[1:])


def answers(
    settings: Mapping[str, Setting], x_0: Tensor, noise: Tensor, levels: Sequence[float]
) -> dict[str, list[Tensor]]:
    """Logits of every setting at every level."""
    found: dict[str, list[Tensor]] = {name: [] for name in settings}
    for place, level in enumerate(levels):
        x = perturb(x_0, x_0.new_full((len(x_0),), level), noise)
        looked = Looked(level)
        for name, setting in settings.items():
            reader = setting.readers[place]
            found[name].append(reader.logits(looked(setting.denoiser, reader, x)))
    return found


def told(found: Answers, grid: Grid) -> dict[str, Any]:
    """What is kept of answers: plain numbers, means over the levels and curves."""
    mean, upper, integral, integral_upper = found.sampling_error()
    curves = {
        "accuracy": found.accuracy,
        "ece": found.ece,
        "smooth_ece": found.smooth_ece,
        "nll": found.mean_nll,
        "ece_if_calibrated": mean,
        "ece_if_calibrated_upper95": upper,
    }
    return {
        "integral_ece": found.integral_ece,
        "limits": list(found.integral_interval()),
        "if_calibrated": {"mean": float(integral), "upper95": float(integral_upper)},
        **{name: float(curves[name].mean()) for name in ("smooth_ece", "nll", "accuracy")},
        "n": found.n,
        "bins": grid.bins,
        "draws": grid.draws,
        "is_small": found.is_small,
        "levels": list(grid.levels),
        "curves": {name: curve.tolist() for name, curve in curves.items()},
    }
