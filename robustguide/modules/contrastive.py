"""Training of networks that compare images with texts.

Radford et al. (2021), section 2.3 and figure 3: of a batch of n images I and their n captions T,
both unit vectors, the logits are the cosines times a learned scale,

    logits_ij = exp(logit_scale) I_i . T_j

and the loss is the mean of two cross-entropies, that of each image's caption among all captions
and that of each caption's image among all images.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional as F

from robustguide.checkpoints.export import write
from robustguide.checkpoints.off_the_shelf import clip_specification
from robustguide.classifiers import OffTheShelf, ZeroShot
from robustguide.classifiers.clip import TEMPLATES, Architecture, clip, text_features, tokenizer
from robustguide.modules.optimization import optimization, thaw
from robustguide.modules.robust import Batch, RobustClassification
from robustguide.noise import NoiseDistribution, expand, noise_like, perturb, vp_scale

LARGEST_SCALE = 100.0  # Radford et al. (2021), section 2.5


class Clean(NoiseDistribution):
    """No noise."""

    def quantile(self, u: Tensor) -> Tensor:
        """Zero."""
        return torch.zeros_like(u)


class CaptionMatching(RobustClassification):
    """Trains a CLIP on images and captions that are made of their class names.

    Each image of each step gets one of the templates at random. A caption fits every image of its
    class name, so its target is spread evenly over them, see `contrastive`. What is evaluated and
    exported is the classifier that compares an image with the captions of all classes. When
    training ends, the whole network is written to `clip.safetensors` as well, from which
    `robustguide.checkpoints.clip_classifier` makes classifiers of other texts.

    Args:
        architecture: Name of a model of `open_clip`, or its configuration: `embed_dim`,
            `vision_cfg` and `text_cfg`.
        class_names: Words for each class, as captions say them.
        templates: Sentences with `{}` where the name goes.
        noise: Distribution of the noise levels in training; null trains on clean images.
        optimizer: Makes the optimizer; null is AdamW.
        scheduler: Makes a schedule that counts optimizer steps; null keeps the learning rate.
        levels: Noise levels of the evaluation, exact sigmas.
        seed: Of the captions and the training noise.

    Raises:
        ImportError: open_clip is not installed.
        ValueError: For an architecture that is not known, no names, a template without a place for
            them, or captions that are longer than the network reads.
    """

    def __init__(
        self,
        architecture: Architecture,
        class_names: Sequence[str],
        templates: Sequence[str] = TEMPLATES,
        noise: NoiseDistribution | None = None,
        optimizer: OptimizerCallable | None = None,
        scheduler: LRSchedulerCallable | None = None,
        levels: Sequence[float] = (0.0, 0.1, 0.2, 0.5),
        seed: int = 0,
    ) -> None:
        specification = clip_specification(architecture, class_names)
        network = clip(architecture)
        net = ZeroShot(architecture, len(class_names))
        net.visual = network.visual
        shelf = OffTheShelf(**{**specification["init_args"], "net": net})
        super().__init__(
            shelf, noise or Clean(), None, optimizer, scheduler, None, levels, seed=seed
        )
        self.clip = network
        self.architecture = architecture
        self.class_names, self.templates = list(class_names), list(templates)
        self.hparams["classifier"] = specification  # by which the exported file is described
        meaning = [self.class_names.index(name) for name in class_names]
        self.captions: Tensor
        self.register_buffer("captions", self._captions(), persistent=False)
        self.meaning: Tensor
        self.register_buffer("meaning", torch.tensor(meaning), persistent=False)

    def _captions(self) -> Int[Tensor, "k m l"]:
        """Tokens of every class in every template."""
        if not self.templates or not all("{}" in each for each in self.templates):
            raise ValueError(
                "templates are sentences with {} where the class name goes, such as 'a photo of a "
                f"{{}}.'; got {self.templates}."
            )
        read = tokenizer(self.architecture)
        rows = []
        for name in self.class_names:
            texts = [template.replace("{}", name) for template in self.templates]
            needed = max(len(read.encode(text)) for text in texts) + 2  # its begin and end
            if needed > read.context_length:
                raise ValueError(
                    f"A caption of {name!r} has {needed} tokens, the network reads "
                    f"{read.context_length}; raise text_cfg.context_length or shorten templates."
                )
            rows.append(read(texts))
        return torch.stack(rows)

    def setup(self, stage: str) -> None:
        """Compares the data with the classifier.

        Raises:
            ValueError: When classes or shapes differ.
        """
        super().setup(stage)
        if stage == "fit":
            thaw(self.clip, None)

    def on_fit_start(self) -> None:
        """States what the captions are."""
        shown = self.templates[0].replace("{}", self.class_names[0])
        rank_zero_info(
            f"Captions of {len(self.class_names)} names in {len(self.templates)} templates, such "
            f"as {shown!r}"
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of the batch of this process."""
        x_0, y, _ = batch
        sigma = self.noise.sample(len(x_0), self.device)  # type: ignore[union-attr]
        x = perturb(x_0, sigma, noise_like(x_0, None))
        template = torch.randint(self.captions.shape[1], y.shape, device=y.device)
        shelf: Any = self.classifier
        shown = shelf.prepared(x / expand(vp_scale(sigma), x))
        images = self.clip.encode_image(shown, normalize=True)
        texts = self.clip.encode_text(self.captions[y, template], normalize=True)
        scale = self.clip.logit_scale.float().exp()
        loss = contrastive(images.float(), texts.float(), scale, self.meaning[y])
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/scale", scale)
        return loss

    @torch.no_grad()
    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Keeps the scale below 100."""
        self.clip.logit_scale.clamp_(max=math.log(LARGEST_SCALE))

    @torch.no_grad()
    def tell(self) -> None:
        """Gives the classifier what the text network says by now."""
        known = text_features(self.architecture, self.clip, self.class_names, self.templates)
        net: Any = self.classifier.net
        net.text_features.copy_(known)
        net.logit_scale.copy_(self.clip.logit_scale)

    def on_validation_epoch_start(self) -> None:
        """See `tell`; a moving average is in place by now."""
        self.tell()

    def on_test_epoch_start(self) -> None:
        """See `tell`."""
        self.tell()

    def on_train_end(self) -> None:
        """Writes the whole network; a moving average has become the weights by now."""
        self.tell()
        trainer: Any = self.trainer
        if trainer.is_global_zero and not trainer.fast_dev_run:
            path = Path(trainer.default_root_dir) / "clip.safetensors"
            state = self.clip.state_dict().items()
            write(path, {name: tensor.cpu().contiguous() for name, tensor in state}, {})
            rank_zero_info(f"Wrote the image and the text network to {path}")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Optimizer over both networks."""
        return optimization(self.clip, self.optimizer, self.scheduler)


def contrastive(
    images: Float[Tensor, "b d"],
    texts: Float[Tensor, "b d"],
    scale: Float[Tensor, ""],
    meaning: Int[Tensor, " b"],
) -> Float[Tensor, ""]:
    """The loss of matching images with their captions, in both directions.

    Rows of equal meaning are no wrong answers for one another: the target probability of a row is
    spread evenly over them (ours). Where all meanings differ this is the loss of Radford et al.
    (2021), figure 3; where they do not, and which of the equal rows are paired is chance, it is
    that loss's mean over the pairings.

    Args:
        images: Unit vectors of images.
        texts: Unit vectors of their captions.
        scale: Multiplies the cosines.
        meaning: Number of what each caption says.
    """
    logits = scale * images @ texts.T
    same = (meaning[:, None] == meaning).to(logits)
    target = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
