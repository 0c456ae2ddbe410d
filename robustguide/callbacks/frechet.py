"""Frechet distance of generated images, at the end and of the predicted clean image on the way."""

from functools import partial
from typing import Any

import torch
from lightning import LightningModule, Trainer

from robustguide.callbacks.reporting import Reporting, publish
from robustguide.metrics import (
    ClassifierFeatures,
    FeatureMoments,
    FrechetByNoise,
    FrechetDistance,
    Moments,
)
from robustguide.report import figures


class FrechetOfSamples(Reporting):
    """Logs `frechet/<features>` of the images and of the denoised image at the watched levels.

    Args:
        features: Extractor; its name is in the key. It is not "FID" unless it is Inception.
        reference: File of the real images' moments; null computes them from the data module's
            reference images.
        batch_size: Real images at a time.
    """

    def __init__(
        self, features: ClassifierFeatures, reference: str | None = None, batch_size: int = 256
    ) -> None:
        super().__init__()
        self.features = features
        self.reference = reference
        self.batch_size = batch_size
        self.final: FrechetDistance | None = None
        self.by_noise: FrechetByNoise | None = None

    def on_test_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Puts the extractor on the device and reads or makes the reference."""
        self.features.to(module.device)
        identity = self.features.identity
        reference = self._moments(trainer, module.device, identity)
        self.final = FrechetDistance(reference, identity).to(module.device)
        generation: Any = module
        levels = len(generation.levels)
        self.by_noise = FrechetByNoise(reference, identity, levels).to(module.device)

    def _moments(self, trainer: Trainer, device: torch.device, identity: str) -> Moments:
        if self.reference is not None:
            return Moments.load(self.reference)
        images = getattr(getattr(trainer, "datamodule", None), "reference", None)
        if images is None:
            raise ValueError(
                "No real images to compare with; set data.reference to an image source, or this "
                "callback's reference to a file of moments."
            )
        sums: FeatureMoments | None = None
        for first in range(0, len(images), self.batch_size):
            rows = range(first, min(first + self.batch_size, len(images)))
            batch = torch.stack([images[row][0] for row in rows]).to(device)
            features = self.features(batch)
            if sums is None:  # every process counts all the real images itself: no reduction
                sums = FeatureMoments(features.shape[1], identity, str(images)).to(device)
            sums.update(features)
        assert sums is not None
        return sums.moments()

    def add(self, module: Any, outputs: Any) -> None:
        """Adds a batch."""
        assert self.final is not None and self.by_noise is not None
        self.final.update(self.features(outputs["images"]))
        for level, denoised in enumerate(outputs["denoised"]):
            self.by_noise.update(self.features(denoised.clamp(-1, 1)), level)

    def on_test_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Logs; frees the extractor's device memory."""
        assert self.final is not None and self.by_noise is not None
        key = f"frechet/{self.features.name}"
        found = self.final.compute()
        self.measured(
            module,
            "test",
            key,
            found.distance,
            found.n,
            extractor=self.features.identity,
            reference_n=found.reference_n,
            rank_deficient=found.rank_deficient,
        )
        distances = [level.distance for level in self.by_noise.compute()]
        series = {key: distances}
        generation: Any = module
        levels = list(generation.levels)
        self.curve(trainer, "test", "frechet", levels, series)
        draw = partial(figures.curves, levels, series, ylabel=key)
        publish(trainer, "test/frechet_by_noise", draw)
        self.features.to("cpu")
