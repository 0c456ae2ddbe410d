"""The Inception network of the Frechet distance. Szegedy et al. (2015); Heusel et al. (2017).

A translation of TensorFlow's `inception-2015-12-05` graph, made of the layers of torch-fidelity
and under the names of its parameters. It differs from torchvision's network where TensorFlow's
does: average pools do not count their padding, the last block takes a maximum instead, and there
are 1008 logits.
"""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch_fidelity.feature_extractor_inceptionv3 import (
    BasicConv2d,
    InceptionA,
    InceptionB,
    InceptionC,
    InceptionD,
    InceptionE_1,
    InceptionE_2,
)

SIZE = 299
SPATIAL = 7  # channels


class Readout(NamedTuple):
    """What evaluations read of the graph, by its tensors. Dhariwal and Nichol (2021).

    Attributes:
        pool3: `pool_3`, the last map averaged over its places.
        spatial: The first 7 channels of `mixed_6/conv`, place by place as TensorFlow stores them.
        logits: `pool_3` times the matrix of the logits, without their bias.
    """

    pool3: Float[Tensor, "b 2048"]
    spatial: Float[Tensor, "b 2023"]
    logits: Float[Tensor, "b 1008"]


class FIDInception(nn.Module):
    """Logits of images of 299 x 299 pixels, which it does not resize.

    The graph standardises bytes as `(byte - 128) / 128`; `byte / 127.5 - 1` differs by 1/255 at
    black.
    """

    shape = 3, SIZE, SIZE

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = BasicConv2d(3, 32, kernel_size=3, stride=2)
        self.Conv2d_2a_3x3 = BasicConv2d(32, 32, kernel_size=3)
        self.Conv2d_2b_3x3 = BasicConv2d(32, 64, kernel_size=3, padding=1)
        self.Conv2d_3b_1x1 = BasicConv2d(64, 80, kernel_size=1)
        self.Conv2d_4a_3x3 = BasicConv2d(80, 192, kernel_size=3)
        self.Mixed_5b = InceptionA(192, pool_features=32)
        self.Mixed_5c = InceptionA(256, pool_features=64)
        self.Mixed_5d = InceptionA(288, pool_features=64)
        self.Mixed_6a = InceptionB(288)
        self.Mixed_6b = InceptionC(768, channels_7x7=128)
        self.Mixed_6c = InceptionC(768, channels_7x7=160)
        self.Mixed_6d = InceptionC(768, channels_7x7=160)
        self.Mixed_6e = InceptionC(768, channels_7x7=192)
        self.Mixed_7a = InceptionD(768)
        self.Mixed_7b = InceptionE_1(1280)
        self.Mixed_7c = InceptionE_2(2048)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1008"]:
        """Logits.

        Raises:
            ValueError: For images of another size.
        """
        return self.fc(self.features(images))

    def features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 2048"]:
        """What the logits are computed from: the last map, averaged over its places."""
        return self.maps(images)[-1].mean((2, 3))

    def maps(
        self, images: Float[Tensor, "b c h w"]
    ) -> tuple[
        Float[Tensor, "b 192 35 35"], Float[Tensor, "b 768 17 17"], Float[Tensor, "b 2048 8 8"]
    ]:
        """Features with their places, after each change of size.

        Raises:
            ValueError: For images of another size.
        """
        early = self._early(images)
        middle = self.Mixed_6e(self.Mixed_6d(self._before_6d(early)))
        return early, middle, self._late(middle)

    def readout(self, images: Float[Tensor, "b c h w"]) -> Readout:
        """What evaluations compare.

        Raises:
            ValueError: For images of another size.
        """
        before = self._before_6d(self._early(images))
        # The graph's mixed_6/conv is the output of this branch, normalised and rectified. Computed
        # once more by itself: 0.7% of the network.
        spatial = self.Mixed_6d.branch1x1(before)[:, :SPATIAL]
        pool3 = self._late(self.Mixed_6e(self.Mixed_6d(before))).mean((2, 3))
        places = spatial.permute(0, 2, 3, 1).flatten(1)  # references store channels last
        return Readout(pool3, places, F.linear(pool3, self.fc.weight))

    def _early(self, images: Tensor) -> Tensor:
        if images.shape[1:] != self.shape:
            raise ValueError(
                f"The Inception network reads images of shape {list(self.shape)}, not "
                f"{list(images.shape[1:])}; resize them first, in the way of the publication that "
                "the numbers are compared with."
            )
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(images)))
        return _reduced(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(_reduced(x))))

    def _before_6d(self, early: Tensor) -> Tensor:
        x = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(early))))
        return self.Mixed_6c(self.Mixed_6b(x))

    def _late(self, middle: Tensor) -> Tensor:
        return self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(middle)))


def _reduced(x: Tensor) -> Tensor:
    """Largest of 3 x 3 at every second place, without padding."""
    return F.max_pool2d(x, 3, stride=2)
