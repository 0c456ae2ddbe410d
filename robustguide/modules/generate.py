"""Guided sampling from checkpoints, and what is watched on the way."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from lightning import LightningModule
from torch import Tensor

from robustguide.data.parts import Part
from robustguide.guidance import (
    AnyReading,
    AtDenoised,
    Guidance,
    Guided,
    Reading,
    check_gradients,
    check_observer,
    reading_of,
    terms_of,
)
from robustguide.interfaces import Classifier, Codec, Denoiser, from_pixels
from robustguide.modules.cost import Evaluated, counted, timed
from robustguide.samplers import Observation, Sampler, SeededNoise
from robustguide.samplers.base import Observe

Seeds = tuple[Tensor, Tensor]
ROUNDING = 1e-5  # of a level that was copied from what a run printed


class Seen(NamedTuple):
    """What is kept of a watched step.

    Attributes:
        sigma: Level of the state.
        x: State.
        predicted: Clean image that the observer is shown, where it looks at one.
        denoised: Clean image that the sampler goes towards, in float32.
    """

    sigma: float
    x: Tensor
    predicted: Tensor
    denoised: Tensor


class Generation(LightningModule):
    """Samples images of given seeds and labels; `test` shows the trajectory to callbacks.

    Args:
        denoiser: Unguided denoiser.
        sampler: How it is sampled.
        guidance: Terms by name.
        observer: Reads along. A classifier is shown the predicted clean image, in the space of
            the denoiser, and does not guide. The name of a term of the guidance takes the
            classifier of this term, which reads what guides: the state, or the clean image that
            the denoiser alone predicts there.
        watched_steps: Which steps of the trajectory are kept for callbacks: how many, evenly
            spread over the run, the first and the last among them; or a list of noise levels
            sigma, of which each means the step nearest in log sigma, and a step is kept once.
        codec: Translates what is sampled into the images that callbacks see; null where the
            denoiser's space is that of the images.

    Attributes:
        watched: The steps that are kept, from high noise to low.
        levels: Their noise levels.
        reading: How the observer reads; null where nobody does.
        read_by: Who that is, in words.
        watchers: Called once a step of a test, beside what is watched; callbacks put theirs here.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        sampler: Sampler,
        guidance: dict[str, Guidance] | None = None,
        observer: Classifier | str | None = None,
        watched_steps: int | list[float] = 10,
        codec: Codec | None = None,
    ) -> None:
        super().__init__()
        if codec is not None and codec.channels != denoiser.shape[0]:
            raise ValueError(
                f"The codec reads latents of {codec.channels} channels, the denoiser's have "
                f"{denoiser.shape[0]}; give the codec that the denoiser was trained with."
            )
        sampler.check(denoiser)
        Guided(denoiser, guidance, sampler.clip)
        check_gradients(denoiser, guidance or {})
        self.denoiser = denoiser
        self.sampler = sampler
        self.guidance = torch.nn.ModuleDict(guidance)
        self.observer = observer if isinstance(observer, Classifier) else None
        self.reading: AnyReading | None = None
        self.read_by = "observer" if isinstance(observer, Classifier) else f"term {observer!r}"
        self.shown_to_observer: Callable[[Observation], Tensor] = predicted_by_sampler
        if isinstance(observer, str):
            self.reading = reading_of(observer, guidance or {})
            clips = not (guidance or {})[observer].moves_denoised
            self.shown_to_observer = predicted_alone(sampler.clip if clips else None)
        elif observer is not None:
            check_observer(observer, denoiser)
            self.reading = Reading(observer, AtDenoised())
        self.codec = codec
        sigmas = sampler.levels(denoiser)[:-1]
        self.watched = watched(sigmas, watched_steps)
        self.levels = tuple(sigmas[index] for index in self.watched)
        self.evaluated = Evaluated()
        self.watchers: list[Observe] = []
        self.requires_grad_(False).eval()

    def setup(self, stage: str) -> None:
        """Compares the labels of the data with the denoiser.

        Raises:
            ValueError: When the numbers of classes differ.
        """
        num_classes = getattr(getattr(self.trainer, "datamodule", None), "num_classes", None)
        if num_classes is not None and 0 < self.denoiser.num_classes != num_classes:
            raise ValueError(
                f"The seeds have labels of {num_classes} classes, the denoiser knows "
                f"{self.denoiser.num_classes}; set data.num_classes to the denoiser's."
            )

    def generate(self, batch: Seeds, observe: Observe | None = None) -> dict[str, Tensor]:
        """Images of a batch of seeds and labels.

        Args:
            batch: Numbers (b,) and labels (b,) of the images.
            observe: Called once a step.

        Returns:
            `images` (b, c, h, w) clamped to [-1, 1], `y` and `index`. Of latents, the images are
            the bytes of the codec's publication, read back.
        """
        index, y = batch
        noise = SeededNoise(index.tolist())
        x = self.sampler.start(noise.draw(self.denoiser.shape, self.device), self.denoiser)
        terms, cost = terms_of(self.guidance), self.evaluated
        with timed(cost, self.device), counted(self.denoiser, self.guidance, cost):
            images = self.sampler(self.denoiser, terms, x, y, noise, observe)
        self.evaluated.images += len(index)
        return {"images": self.shown(images.float()), "y": y, "index": index}

    @torch.no_grad()
    def shown(self, x_0: Tensor) -> Tensor:
        """What was sampled, as images in [-1, 1]."""
        if self.codec is None:
            return x_0.clamp(-1, 1)
        with timed(self.evaluated, self.device, "decoding_seconds"):
            return from_pixels(self.codec.to_bytes(self.codec.decode(x_0)))

    def test_step(self, batch: Seeds | Part, batch_idx: int) -> dict[str, Any]:
        """As `generate`; and `denoised` (watched, b, c, h, w), `logits` (watched, b, k) of them.

        Logits only with an observer, at the watched steps. A part that another run made is handed
        on to the callbacks, as `part`.
        """
        if isinstance(batch, Part):
            self.evaluated.join(batch.facts["evaluated"])
            return {"part": batch}
        seen: list[Seen] = []

        def watch(step: Observation) -> None:
            if step.place.index in self.watched:
                sigma = step.place.sigma
                assert sigma is not None  # a sampler has one level for all rows
                predicted = self.shown_to_observer(step)
                seen.append(Seen(sigma, step.x, predicted, step.denoised.float()))
            for watcher in self.watchers:
                watcher(step)

        answer: dict[str, Any] = self.generate(batch, watch)
        if self.reading is not None:
            answer["logits"] = self.read(self.reading, seen)
        denoised = [each.denoised for each in seen]
        if self.codec is not None:
            denoised = [self.shown(x_0) for x_0 in denoised]
        return answer | {"denoised": torch.stack(denoised)}

    def read(self, reading: AnyReading, seen: Sequence[Seen]) -> Tensor:
        """Logits (watched, b, k) of what is read, after sampling and its count ended."""
        self.evaluated.observer_forward += sum(len(each.x) for each in seen)
        with self.watching():
            return torch.stack([reading(e.x, e.sigma, e.predicted) for e in seen])

    def watching(self) -> AbstractContextManager[None]:
        """Counts the time of a block as time of watching."""
        return timed(self.evaluated, self.device, "watching_seconds")

    def predict_step(self, batch: Seeds, batch_idx: int) -> dict[str, Tensor]:
        """See `generate`; nothing is watched."""
        return self.generate(batch)

    def configure_optimizers(self) -> None:
        """Nothing is trained."""


def spread(count: int, wanted: int) -> tuple[int, ...]:
    """Evenly spread indices below count, both ends included."""
    if wanted < 1:
        raise ValueError(f"watched_steps must be at least 1, got {wanted}.")
    if wanted == 1 or count == 1:
        return (count - 1,)
    wanted = min(wanted, count)
    return tuple(round(i * (count - 1) / (wanted - 1)) for i in range(wanted))


def predicted_by_sampler(step: Observation) -> Tensor:
    """The clean image that the sampler goes towards, in float32."""
    return step.denoised.float()


def predicted_alone(bound: float | None) -> Callable[[Observation], Tensor]:
    """The clean image that the denoiser alone predicts, clipped as a term of guidance sees it."""

    def shown(step: Observation) -> Tensor:
        return step.unguided if bound is None else step.unguided.clamp(-bound, bound)

    return shown


def watched(sigmas: Sequence[float], wanted: int | Sequence[float]) -> tuple[int, ...]:
    """Steps of a run by their number, or by the levels that they are nearest to in log sigma.

    Args:
        sigmas: Level of each step, descending.
        wanted: How many, or which levels.

    Raises:
        ValueError: For no step at all, and for a level outside the run's.
    """
    if isinstance(wanted, int):
        return spread(len(sigmas), wanted)
    low, high = sigmas[-1] * (1 - ROUNDING), sigmas[0] * (1 + ROUNDING)
    outside = [sigma for sigma in wanted if not low <= sigma <= high]
    if outside or not wanted:
        raise ValueError(
            f"watched_steps must be a number of steps, or noise levels from {sigmas[-1]:.6g} to "
            f"{sigmas[0]:.6g}, those of this sampler's steps; got {outside or list(wanted)}."
        )
    nearest = {
        min(range(len(sigmas)), key=lambda step: abs(math.log(sigmas[step] / sigma)))
        for sigma in wanted
    }
    return tuple(sorted(nearest))
