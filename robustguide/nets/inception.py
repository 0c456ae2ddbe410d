"""The Inception network of the Frechet distance. Szegedy et al. (2015); Heusel et al. (2017).

A translation of TensorFlow's `inception-2015-12-05` graph under torchvision's names. It differs
from torchvision's network where TensorFlow's does: average pools do not count their padding, the
last block takes a maximum instead, and there are 1008 logits.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.inception import (
    BasicConv2d,
    InceptionA,
    InceptionB,
    InceptionC,
    InceptionD,
    InceptionE,
)

SIZE = 299


def average(x: Tensor) -> Tensor:
    """Mean of the 3 x 3 neighbours that exist, so that a constant stays itself at the border."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def maximum(x: Tensor) -> Tensor:
    """Largest of the 3 x 3 neighbours."""
    return F.max_pool2d(x, 3, stride=1, padding=1)


def reduced(x: Tensor) -> Tensor:
    """Largest of 3 x 3 at every second place, without padding."""
    return F.max_pool2d(x, 3, stride=2)


class BlockA(InceptionA):
    """Kernels of 1, 5 and twice 3."""

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch1x1(x)
        five = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([single, five, double, self.branch_pool(average(x))], dim=1)


class BlockC(InceptionC):
    """Kernels of 1, and of 7 in one direction after the other."""

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch1x1(x)
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([single, seven, double, self.branch_pool(average(x))], dim=1)


class BlockE(InceptionE):
    """Kernels of 1, and of 3 in both directions side by side."""

    pool = staticmethod(average)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        branches = [
            self.branch1x1(x),
            self.branch3x3_2a(three),
            self.branch3x3_2b(three),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(self.pool(x)),
        ]
        return torch.cat(branches, dim=1)


class LastBlock(BlockE):
    """With the maximum of the graph, where its paper has an average."""

    pool = staticmethod(maximum)


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
        self.Mixed_5b = BlockA(192, pool_features=32)
        self.Mixed_5c = BlockA(256, pool_features=64)
        self.Mixed_5d = BlockA(288, pool_features=64)
        self.Mixed_6a = InceptionB(288)
        self.Mixed_6b = BlockC(768, channels_7x7=128)
        self.Mixed_6c = BlockC(768, channels_7x7=160)
        self.Mixed_6d = BlockC(768, channels_7x7=160)
        self.Mixed_6e = BlockC(768, channels_7x7=192)
        self.Mixed_7a = InceptionD(768)
        self.Mixed_7b = BlockE(1280)
        self.Mixed_7c = LastBlock(2048)
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
        if images.shape[1:] != self.shape:
            raise ValueError(
                f"The Inception network reads images of shape {list(self.shape)}, not "
                f"{list(images.shape[1:])}; resize them first, in the way of the publication that "
                "the numbers are compared with."
            )
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(images)))
        early = reduced(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(reduced(x))))
        x = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(early))))
        middle = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x))))
        late = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(middle)))
        return early, middle, late
