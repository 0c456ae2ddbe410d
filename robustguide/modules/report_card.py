"""The report card of a classifier: what it is worth as a guide, by noise level."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor

from robustguide.attacks import Attack
from robustguide.guidance import AtDenoised, AtState, Guidance, View, check_observer
from robustguide.interfaces import Classifier, Codec, Denoiser
from robustguide.modules.examination import (
    Cell,
    Examination,
    Found,
    named,
    stacked,
)
from robustguide.modules.generate import Generation
from robustguide.modules.latent import Space
from robustguide.modules.trial import try_on_data
from robustguide.samplers import Observation, Sampler, evaluation_noise
from robustguide.samplers.seeds import mixed

Batch = tuple[Tensor, Tensor, Tensor]
CHOICE = 2  # first word of the seeds that choose the images of `Reverse`
PIXELS = 1, 3  # channels of images; what has others are latents


class Reverse:
    """How a report card follows the reverse process.

    Image number i of the data gives the label y_i and the number i of a trajectory, which the
    label-conditional denoiser makes. On the way the classifier is read with y_i as the truth.
    Ma et al. (2024), eq. 1.

    Args:
        sampler: How the denoiser is sampled; its bound is that of the predicted clean images.
        guidance: Terms by name; null samples without.
        watched_steps: At how many steps the classifier is read, evenly spread, the first and the
            last among them; or near which noise levels, as for `Generation`.
        share: Share of the images that give a trajectory; their numbers decide which.
        judge: Tells whether a finished image shows its label; another than the classifier, which
            judges itself where there is none ("self_agreement").

    Raises:
        ValueError: For a share outside (0, 1].
    """

    def __init__(
        self,
        sampler: Sampler,
        guidance: dict[str, Guidance] | None = None,
        watched_steps: int | list[float] = 10,
        share: float = 1.0,
        judge: Classifier | None = None,
    ) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"share lies above 0 and up to 1, which is all images; got {share}.")
        self.sampler, self.guidance, self.watched_steps = sampler, guidance, watched_steps
        self.share, self.judge = share, judge

    def chosen(self, index: Tensor) -> list[int]:
        """Rows of a batch whose images give a trajectory."""
        limit = self.share * 2**32  # of a 32-bit hash
        return [row for row, i in enumerate(index.tolist()) if mixed(i, CHOICE) < limit]


class ReportCard(LightningModule):
    """Reads a classifier on noised test images and, if asked, along the reverse process.

    `test` shows it to the callback `ReportCards`. Nothing is trained.

    Args:
        classifier: Of noisy or of clean images.
        levels: Noise levels of the forward process, sigmas.
        denoiser: Predicts clean images, and gives the direction that gradients are compared with.
        views: What the classifier is shown, by name; null is "x_t" and, with a denoiser,
            "denoised".
        attacks: Each gives an accuracy under attack.
        gradients: Whether gradients are taken, which doubles the cost.
        draws: Of noise for each image of the forward process.
        clip: Bound of the predicted clean image on the forward process; null, for latents, does
            not clip.
        codec: Translates the images of the data into the classifier's space; null where they are
            in it.
        reverse: How the reverse process is followed; null leaves it out.
        num_bins: Bins of the calibration errors.

    Raises:
        ValueError: See `Examination`; for a denoiser of other images or classes, for latents with
            a bound, and for a reverse process without a denoiser.
    """

    def __init__(
        self,
        classifier: Classifier,
        levels: Sequence[float],
        denoiser: Denoiser | None = None,
        views: dict[str, View] | None = None,
        attacks: Sequence[Attack] = (),
        gradients: bool = True,
        draws: int = 1,
        clip: float | None = 1.0,
        codec: Codec | None = None,
        reverse: Reverse | None = None,
        num_bins: int = 15,
    ) -> None:
        super().__init__()
        if denoiser is not None:
            check_observer(classifier, denoiser)
            if clip is not None and denoiser.shape[0] not in PIXELS:
                raise ValueError(
                    f"The predicted clean images are latents of {denoiser.shape[0]} channels, "
                    f"which have no bound; set clip: null in place of {clip}."
                )
        if views is None:
            views = {"x_t": AtState()}
            views |= {} if denoiser is None else {"denoised": AtDenoised()}
        self.classifier, self.denoiser = classifier, denoiser
        self.num_bins = num_bins
        self.space = Space(codec)
        self.forward_process = Examination(
            levels, views, attacks, gradients, draws, denoiser, clip
        )
        self.reverse = reverse
        self.generation: Generation | None = None
        self.judge: Classifier | None = None
        self.judged_by: str | None = None
        self.examined: dict[str, Cell] = self.forward_process.cells(classifier)
        if reverse is not None:
            self._follow(reverse, views, attacks, gradients, codec)
        self.requires_grad_(False).eval()

    def _follow(
        self,
        reverse: Reverse,
        views: dict[str, View],
        attacks: Sequence[Attack],
        gradients: bool,
        codec: Codec | None,
    ) -> None:
        """Prepares the reverse process."""
        if self.denoiser is None:
            raise ValueError("The reverse process is that of a denoiser; give a denoiser, too.")
        sampler, steps = reverse.sampler, reverse.watched_steps
        self.generation = Generation(
            self.denoiser, sampler, reverse.guidance, watched_steps=steps, codec=codec
        )
        self.judge = reverse.judge
        self.judged_by = "self_agreement" if reverse.judge is None else "agreement"
        self.reverse_process = Examination(
            self.generation.levels, views, attacks, gradients, 1, self.denoiser, sampler.clip
        )
        self.examined |= self.reverse_process.cells(self.classifier, "reverse")

    def setup(self, stage: str) -> None:
        """Compares the data with the classifier.

        Raises:
            ValueError: When classes or shapes differ.
        """
        try_on_data(self.classifier, getattr(self.trainer, "datamodule", None), self.space)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """What an `Examination` found, by the name of its `Cell`; `y` and `index` of the rows.

        Of the reverse process also `judged`: the rows whose finished images show their label.
        """
        images, y, index = batch
        x_0 = self.space.own(images, index)
        found = self.forward_process.examine(self.classifier, x_0, y, index)
        answer: dict[str, Any] = {"cells": named(found, "forward", y, index)}
        rows = self.reverse.chosen(index) if self.reverse is not None else []
        if rows:
            found, judged = self.follow(y[rows], index[rows])
            answer["cells"] |= named(found, "reverse", y[rows], index[rows])
            answer["judged"] = {"index": index[rows], "correct": judged}
        return answer

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """See `test_step`."""
        return self.test_step(batch, batch_idx)

    def follow(self, y: Tensor, index: Tensor) -> tuple[Found, Tensor]:
        """Samples these labels and numbers; see `Examination.examine`.

        Returns:
            What was found at the watched states, and which finished images show their label.
        """
        generation = self.generation
        assert generation is not None
        seen: list[Tensor] = []

        def watch(step: Observation) -> None:
            if step.place.index in generation.watched:
                seen.append(step.x)

        images = generation.generate((index, y), watch)["images"]
        noise = evaluation_noise(index).spawn("reverse")
        found = stacked([self.reverse_process.read(self.classifier, seen, y, y, noise)])
        return found, self.judged(images, index) == y

    @torch.no_grad()
    def judged(self, images: Tensor, index: Tensor) -> Tensor:
        """Classes of finished images, by the judge or else by the classifier."""
        judge, x_0 = self.judge, images
        if judge is None:
            judge, x_0 = self.classifier, self.space.own(images, index)
        logits: Tensor = judge(x_0, x_0.new_zeros(len(x_0)))
        return logits.argmax(-1)

    def configure_optimizers(self) -> None:
        """Nothing is trained."""
