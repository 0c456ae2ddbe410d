"""What turns bytes of images into features, and how it is known again."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

Pixels = UInt8[Tensor, "b c h w"]
Resize = Callable[[Pixels], Float[Tensor, "b c h w"]]


@dataclass(frozen=True)
class Identity:
    """Which network made features, in which layout of pixels.

    Attributes:
        network: Such as "inception-2015-12-05".
        digest: Of the weights; null where a foreign file does not tell, and is believed.
        resize: How images came to the network's size, such as "tf1-bilinear-299".
    """

    network: str
    digest: str | None
    resize: str

    def agrees(self, other: "Identity") -> bool:
        """Whether features of both may be compared."""
        same = (self.network, self.resize) == (other.network, other.resize)
        told = self.digest is not None and other.digest is not None
        return same and (not told or self.digest == other.digest)

    def __str__(self) -> str:
        return f"{self.network}@{self.digest or 'weights not told'}, resize {self.resize}"


class Extractor(nn.Module, ABC):
    """Features of images given as bytes, by the name of the layer.

    It stays in eval mode, runs outside autocast, without TF32 and without gradients, so that
    features depend on the image alone. It belongs into a callback or a command: on a module that
    is trained it would go into every checkpoint.

    Args:
        identity: Of the network with its weights.
    """

    def __init__(self, identity: Identity) -> None:
        super().__init__()
        self.identity = identity

    def train(self, mode: bool = True) -> "Extractor":
        """Stays in eval mode, whatever is asked."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, pixels: Pixels, y: Int[Tensor, " b"] | None = None) -> dict[str, Tensor]:
        """Features (b, d) in float32 by layer; colour is a grey image three times where needed.

        Args:
            pixels: Bytes.
            y: Labels, for a network that reads them too, as CLIP does.
        """
        with torch.autocast(pixels.device.type, enabled=False), whole_float32():
            found = self.features(pixels, y)
        return {layer: features.float() for layer, features in found.items()}

    @abstractmethod
    def features(self, pixels: Pixels, y: Int[Tensor, " b"] | None) -> dict[str, Tensor]:
        """See `forward`."""


@contextmanager
def whole_float32() -> Iterator[None]:
    """Products and convolutions on CUDA in all 24 bits of float32, whatever the run allows.

    TF32 keeps 11 of them, which moves features by about 1e-3 of their size.
    """
    products: Any = torch.backends.cuda.matmul
    convolutions: Any = torch.backends.cudnn
    places, name, exact = (products, convolutions), "allow_tf32", cast(Any, False)
    if hasattr(products, "fp32_precision"):  # from torch 2.9 on
        places, name, exact = (products, convolutions.conv), "fp32_precision", "ieee"
    before = [getattr(place, name) for place in places]
    try:
        for place in places:
            setattr(place, name, exact)
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            setattr(place, name, value)
