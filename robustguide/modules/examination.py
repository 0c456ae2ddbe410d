"""What a classifier says of images at noise levels, asked in the same way wherever it is asked.

A *view* decides what it is shown of a state x: x itself, or the clean image that a denoiser
predicts from it. With g the gradient of log p(y | what is shown) there, read as a score at x as
guidance reads it, the quantities are

    gradient_norm = sqrt(1 + sigma**2) |g|              (the gradient at x_t)
    cosine = <g, D(x, y) - D(x, null)> / norms

The norm is in nats a unit of x_t, the unit of the radii of attacks, and so comparable over noise
levels. The direction is the classifier-free one; of an exact denoiser it is the exact one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustguide.attacks import Attack
from robustguide.guidance import Branch, Evaluations, Step, View, score
from robustguide.interfaces import Classifier, Denoiser, Place
from robustguide.metrics.vectors import cosines, lengths
from robustguide.noise import perturb, vp_scale
from robustguide.samplers import SeededNoise, evaluation_noise

Found = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Cell:
    """One process seen through one view, as it is known before anything is measured.

    Attributes:
        process: "forward" where labelled images are noised, "reverse" along sampling.
        view: Its name.
        levels: Noise levels.
        num_classes: Of the classifier.
        draws: Of noise, for each image.
        threats: The attacks in words.
        attacks_clean: Whether they move a clean image and not a noisy one.
        gradients: Whether gradients are taken.
        labelled: Whether the denoiser is told the label.
    """

    process: str
    view: str
    levels: tuple[float, ...]
    num_classes: int
    draws: int
    threats: tuple[str, ...]
    attacks_clean: bool
    gradients: bool
    labelled: bool

    @property
    def name(self) -> str:
        """Such as "forward_x_t"."""
        return f"{self.process}_{self.view}"


class Examination:
    """Asks a classifier everything about images at noise levels, through a number of views.

    No module: the denoiser is not its own.

    Args:
        levels: Noise levels, sigmas.
        views: What the classifier is shown, by name.
        attacks: Each moves what it is shown. A noisy image moves at its level; a predicted clean
            one as at level 0, so that the radius is in units of the image.
        gradients: Whether gradients are taken.
        draws: Of noise for each image.
        denoiser: Predicts the clean images; gives the direction that gradients are compared with.
        clip: Bound of the predicted clean image; null does not clip.

    Raises:
        ValueError: For levels, draws or views that are none, and for a view of a predicted clean
            image without a denoiser.
    """

    def __init__(
        self,
        levels: Sequence[float],
        views: dict[str, View],
        attacks: Sequence[Attack] = (),
        gradients: bool = False,
        draws: int = 1,
        denoiser: Denoiser | None = None,
        clip: float | None = 1.0,
    ) -> None:
        if not levels or not all(0 <= level < float("inf") for level in levels):
            raise ValueError(f"levels must be finite noise levels of at least 0, got {levels}.")
        if denoiser is not None and min(levels) == 0:
            raise ValueError(
                f"A denoiser is not asked at noise level 0; take it out of levels {list(levels)}."
            )
        if draws < 1 or not views:
            raise ValueError(
                f"An examination needs one draw of noise and one view at least, got draws={draws} "
                f"and views {sorted(views)}; leave views out for the usual ones."
            )
        wanting = [name for name, view in views.items() if view.needs_denoised]
        if denoiser is None and wanting:
            raise ValueError(_nobody(f"View {wanting[0]!r}"))
        self.levels, self.views = tuple(levels), views
        self.attacks, self.gradients, self.draws = tuple(attacks), gradients, draws
        self.denoiser, self.clip = denoiser, clip

    @property
    def knows_null(self) -> bool:
        """Whether the denoiser can be asked without a label, and differs where it has one."""
        return (
            self.denoiser is not None and self.denoiser.has_null and self.denoiser.num_classes > 0
        )

    def cells(self, classifier: Classifier, process: str = "forward") -> dict[str, Cell]:
        """One a view, by its name."""
        conditional = self.denoiser is not None and self.denoiser.num_classes > 0
        told = process == "reverse" or not self.knows_null
        made = [
            Cell(
                process=process,
                view=name,
                levels=self.levels,
                num_classes=classifier.num_classes,
                draws=self.draws,
                threats=tuple(map(str, self.attacks)),
                attacks_clean=view.clean,
                gradients=self.gradients,
                labelled=view.needs_denoised and conditional and told,
            )
            for name, view in self.views.items()
        ]
        return {cell.name: cell for cell in made}

    def examine(
        self,
        classifier: Classifier,
        x_0: Float[Tensor, "b c h w"],
        y: Int[Tensor, " b"],
        index: Int[Tensor, " b"],
    ) -> Found:
        """Of clean images that are noised. The noise is that of an image's number, at all levels.

        The denoiser is asked with its null label, so that the predicted clean image does not tell
        the label; where it knows none, it is told the label, and `Cell.labelled` says so.

        Args:
            classifier: Is asked as it is; put it into eval mode.
            x_0: Clean images in its space.
            y: Their labels.
            index: Their numbers.

        Returns:
            For each view `logits` (draws, levels, b, k); with attacks `attacked` (draws, levels,
            attacks, b, k); with gradients `gradient_norm` and `cosine` (draws, levels, b), NaN
            where there is no direction to compare with and 0 where the gradient is 0.
        """
        told = None if self.knows_null else y
        found = []
        for draw in range(self.draws):
            noise = evaluation_noise(index, draw)
            unit = noise.draw(x_0.shape[1:], x_0.device)
            states = (
                perturb(x_0, x_0.new_full((len(x_0),), level), unit) for level in self.levels
            )
            found.append(self.read(classifier, states, y, told, noise))
        return stacked(found)

    def read(
        self,
        classifier: Classifier,
        states: Iterable[Float[Tensor, "b c h w"]],
        y: Int[Tensor, " b"],
        told: Int[Tensor, " b"] | None,
        noise: SeededNoise,
    ) -> Found:
        """Of one state a level, as `examine` but without the axis of draws.

        Args:
            classifier: Is asked.
            states: x at each level.
            y: What the images show.
            told: What the denoiser is told; null is its null label.
            noise: Random starts of attacks are streams of it.
        """
        found = []
        for number, x in enumerate(states):
            with torch.no_grad():
                found.append(self._at(classifier, x, number, y, told, noise))
        return stacked(found)

    def _at(
        self,
        classifier: Classifier,
        x: Tensor,
        number: int,
        y: Tensor,
        told: Tensor | None,
        noise: SeededNoise,
    ) -> Found:
        """At one level, of its number."""
        step = self._step(x, number, y, told, with_graph=False)
        direction = self._direction(step, y) if self.gradients else None
        found = {}
        for name, view in self.views.items():
            asked = _Asked(view, classifier, self.levels[number])
            images = view.point(step)
            answer = found[name] = {"logits": asked(images, step.sigma)}
            if self.attacks:
                starts = [noise.spawn(f"{number}, {each}") for each in range(len(self.attacks))]
                answer["attacked"] = self._attacked(asked, images, step.sigma, y, starts)
            if self.gradients:
                with_graph = view.needs_graph
                at = self._step(x, number, y, told, with_graph) if with_graph else step
                with torch.set_grad_enabled(with_graph):
                    pulled = view.pull(at, score(asked, images, at.sigma, y)).detach()
                answer["gradient_norm"] = vp_scale(at.sigma) * lengths(pulled)
                answer["cosine"] = cosines(pulled, direction)
        return found

    def _attacked(
        self,
        asked: "_Asked",
        images: Tensor,
        sigma: Tensor,
        y: Tensor,
        starts: Sequence[SeededNoise],
    ) -> Tensor:
        """Logits (attacks, b, k)."""
        level = torch.zeros_like(sigma) if asked.view.clean else sigma
        moved = [
            attack(asked, images, level, y, start.generators)
            for attack, start in zip(self.attacks, starts, strict=True)
        ]
        return torch.stack([asked(each, level) for each in moved])

    def _step(
        self, x: Tensor, number: int, y: Tensor, told: Tensor | None, with_graph: bool
    ) -> Step:
        """What guidance would be shown of a state."""
        x = x.detach().requires_grad_() if with_graph else x
        sigma = x.new_full((len(x),), self.levels[number])
        null = y if self.denoiser is None else self.denoiser.null(y)
        told = null if told is None else told
        evaluate = evaluations(self.denoiser, x, sigma)
        if with_graph:
            with torch.enable_grad():
                evaluate.batch([Branch(told)])
        return Step(
            x=x,
            sigma=sigma,
            y=told,
            null=null,
            place=Place(sigma=self.levels[number]),
            evaluate=evaluate,
            shown=lambda d: d if self.clip is None else d.clamp(-self.clip, self.clip),
            memory={},
        )

    def _direction(self, step: Step, y: Tensor) -> Tensor | None:
        """The classifier-free one; null where the denoiser knows no label, or no null label."""
        if not self.knows_null:
            return None
        step.evaluate.batch([Branch(step.y), Branch(y), Branch(step.null)])
        return step.evaluate(y) - step.evaluate(step.null)


class _Asked(nn.Module):
    """A classifier asked through a view, as attacks ask: they may tell level 0 of clean images."""

    def __init__(self, view: View, classifier: Classifier, level: float) -> None:
        super().__init__()
        self.view, self.classifier, self.level = view, classifier, level

    def forward(self, images: Tensor, told: Tensor) -> Tensor:
        """Logits at the true level."""
        return self.view.ask(self.classifier, images, torch.full_like(told, self.level))


def evaluations(denoiser: Denoiser | None, x: Tensor, sigma: Tensor) -> Evaluations:
    """A denoiser's answers at x; where there is none, a view that asks is told so."""
    return _Nobody(x, sigma) if denoiser is None else Evaluations(denoiser, x, sigma)


class _Nobody(Evaluations):
    """In place of a denoiser that is not there."""

    def __init__(self, x: Tensor, sigma: Tensor) -> None:
        self.x, self.sigma = x, sigma

    def batch(self, branches: Sequence[Branch]) -> None:
        raise ValueError(_nobody("A view"))


def _nobody(who: str) -> str:
    return (
        f"{who} shows the classifier a predicted clean image, and nobody predicts it; give a "
        "denoiser, such as robustguide.checkpoints.load_denoiser."
    )


def stacked(found: Sequence[Found]) -> Found:
    """The same tensors with a new first axis."""
    return {
        name: {key: torch.stack([each[name][key] for each in found]) for key in found[0][name]}
        for name in found[0]
    }


def named(
    found: Found, process: str, y: Int[Tensor, " b"], index: Int[Tensor, " b"]
) -> dict[str, dict[str, Tensor]]:
    """What was found, by the name of the cell, with labels and numbers of its rows."""
    rows = {"y": y, "index": index}
    return {f"{process}_{view}": rows | tensors for view, tensors in found.items()}
