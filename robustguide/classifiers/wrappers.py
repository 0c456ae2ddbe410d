"""Classifiers of classifiers, which fit denoisers of another size, space or set of classes."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from robustguide.interfaces import Classifier, Codec


class Wrapper(Classifier):
    """A classifier that shows another one something else, or makes something else of its logits.

    Subclasses say which; the two questions that a classifier answers go the same way.

    Args:
        classifier: Any classifier.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.num_classes = classifier.num_classes
        self.shape = classifier.shape
        self.conditioning = getattr(classifier, "conditioning", None)

    def reads(self, shape: Sequence[int]) -> bool:
        """As the classifier."""
        return self.classifier.reads(shape)

    def shown(
        self, x: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"]
    ) -> tuple[Float[Tensor, "b d g v"], Float[Tensor, " b"]]:
        """What the classifier is given in place of x and sigma; themselves."""
        return x, sigma

    def answered(
        self, logits: Float[Tensor, "b n"], sigma: Float[Tensor, " b"]
    ) -> Float[Tensor, "b k"]:
        """What becomes of its logits at levels sigma; themselves."""
        return logits

    def forward(
        self, x: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"]
    ) -> Float[Tensor, "b k"]:
        """Logits."""
        return self.answered(self.classifier(*self.shown(x, sigma)), sigma)

    def as_clean(
        self, images: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"]
    ) -> Float[Tensor, "b k"]:
        """Logits of images that are read as clean ones."""
        return self.answered(self.classifier.as_clean(*self.shown(images, sigma)), sigma)


class Resized(Wrapper):
    """Shows a classifier images of its own size.

    Images that are a whole number of times as large are averaged over blocks of f x f pixels. The
    noise stays white, at level sigma / f, which is what the classifier is told: so one of noisy
    images stays exact. Resized otherwise (bilinear, antialiased) the noise of neighbouring pixels
    is no longer independent, and sigma is told as it is: that is for clean and predicted images.

    Args:
        classifier: Any classifier.
        size: Side of the images that it is shown; null asks it.

    Raises:
        ValueError: When neither says a size.
    """

    def __init__(self, classifier: Classifier, size: int | None = None) -> None:
        super().__init__(classifier)
        if size is not None and size > 0:
            self.sides = size, size
        elif size is None and classifier.shape is not None:
            self.sides = classifier.shape[1:]
        else:
            raise ValueError(
                f"Resized needs the side of the images that the classifier reads, got {size}, and "
                f"the classifier says {classifier.shape}; give `size`, such as 64."
            )

    def reads(self, shape: Sequence[int]) -> bool:
        """Any size, if the classifier takes the size that it is shown."""
        return self.classifier.reads((shape[0], *self.sides))

    def shown(
        self, x: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"]
    ) -> tuple[Float[Tensor, "b d g v"], Float[Tensor, " b"]]:
        """Images of its size, and their level."""
        factor = x.shape[-1] // self.sides[1]
        if x.shape[-2:] == tuple(factor * side for side in self.sides):
            return F.avg_pool2d(x, factor), sigma / factor
        return F.interpolate(x, self.sides, mode="bilinear", antialias=True), sigma


class Decoded(Wrapper):
    """Shows a classifier of images what a latent decodes to.

    The noise of a latent is no Gaussian noise of the image, so this is for clean and predicted
    latents, or for a classifier that is trained as it is used; sigma is told as it is.

    Args:
        classifier: Reads images in [-1, 1].
        codec: Decodes, differentiably.
    """

    def __init__(self, classifier: Classifier, codec: Codec) -> None:
        super().__init__(classifier)
        self.codec = codec
        if classifier.shape is not None:
            _, height, width = classifier.shape
            self.shape = codec.channels, height // codec.factor, width // codec.factor

    def reads(self, shape: Sequence[int]) -> bool:
        """Latents of the codec, if the classifier takes the images that they are."""
        channels, *sides = shape
        decoded = (self.codec.image_channels, *(side * self.codec.factor for side in sides))
        return channels == self.codec.channels and self.classifier.reads(decoded)

    def shown(
        self, x: Float[Tensor, "b d g v"], sigma: Float[Tensor, " b"]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, " b"]]:
        """The image, at the level of the latent."""
        return self.codec.decode(x), sigma


class Relabelled(Wrapper):
    """Answers for some of a classifier's classes, in another order.

    The others are left out, so probabilities are among those that are named. Guidance alone can
    do with `labels` of its term, which leaves none out.

    Args:
        classifier: Any classifier.
        labels: Its class of every class that is answered for.

    Raises:
        ValueError: For a label outside its classes.
    """

    labels: Tensor

    def __init__(self, classifier: Classifier, labels: Sequence[int]) -> None:
        super().__init__(classifier)
        if not labels or not all(0 <= label < classifier.num_classes for label in labels):
            raise ValueError(
                f"labels must lie in 0..{classifier.num_classes - 1}, the classes of the "
                f"classifier; got {list(labels)}."
            )
        self.num_classes = len(labels)
        self.register_buffer("labels", torch.tensor(labels), persistent=False)

    def answered(
        self, logits: Float[Tensor, "b n"], sigma: Float[Tensor, " b"]
    ) -> Float[Tensor, "b k"]:
        """Those of the classes named."""
        return logits[:, self.labels]
