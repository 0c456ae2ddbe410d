"""Guided sampling from checkpoints, and what is watched on the way."""

import torch
from lightning import LightningModule
from torch import Tensor

from robustguide.guidance import Guidance, Guided, check_gradients, check_observer, terms_of
from robustguide.interfaces import Classifier, Codec, Denoiser, from_pixels
from robustguide.modules.cost import Evaluated, counted, timed
from robustguide.samplers import Observation, Sampler, SeededNoise
from robustguide.samplers.base import Observe

Seeds = tuple[Tensor, Tensor]


class Generation(LightningModule):
    """Samples images of given seeds and labels; `test` shows the trajectory to callbacks.

    Args:
        denoiser: Unguided denoiser.
        sampler: How it is sampled.
        guidance: Terms by name.
        observer: Reads the predicted clean image along the way, in the space of the denoiser; it
            does not guide.
        watched_steps: How many steps of the trajectory are kept for callbacks, evenly spread over
            the run, the first and the last among them.
        codec: Translates what is sampled into the images that callbacks see; null where the
            denoiser's space is that of the images.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        sampler: Sampler,
        guidance: dict[str, Guidance] | None = None,
        observer: Classifier | None = None,
        watched_steps: int = 10,
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
        if observer is not None:
            check_observer(observer, denoiser)
        self.denoiser = denoiser
        self.sampler = sampler
        self.guidance = torch.nn.ModuleDict(guidance)
        self.observer = observer
        self.codec = codec
        sigmas = sampler.levels(denoiser)[:-1]
        self.watched = spread(len(sigmas), watched_steps)
        self.levels = tuple(sigmas[index] for index in self.watched)
        self.evaluated = Evaluated()
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
        return from_pixels(self.codec.to_bytes(self.codec.decode(x_0)))

    def test_step(self, batch: Seeds, batch_idx: int) -> dict[str, Tensor]:
        """As `generate`; and `denoised` (watched, b, c, h, w), `logits` (watched, b, k) of them.

        Logits only with an observer, at the watched steps.
        """
        seen: list[Tensor] = []

        def watch(step: Observation) -> None:
            if step.place.index in self.watched:
                seen.append(step.denoised.float())

        answer = self.generate(batch, watch)
        if self.observer is not None:
            answer["logits"] = self.read(self.observer, seen)
        denoised = seen if self.codec is None else [self.shown(x_0) for x_0 in seen]
        return answer | {"denoised": torch.stack(denoised)}

    @torch.no_grad()
    def read(self, observer: Classifier, seen: list[Tensor]) -> Tensor:
        """Logits (watched, b, k) of predicted clean images, after sampling and its count ended."""
        self.evaluated.observer_forward += sum(len(x_0) for x_0 in seen)
        levels = [seen[0].new_full((len(seen[0]),), level) for level in self.levels]
        read = [observer.as_clean(*each) for each in zip(seen, levels, strict=True)]
        return torch.stack(read)

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
