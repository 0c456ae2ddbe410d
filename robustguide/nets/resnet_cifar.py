"""Residual networks for images of 32 pixels. He et al. (2016).

Names and shapes of all parameters are those of the CIFAR networks of the `robustness` package: a
3 x 3 stem without pooling, four stages, average pooling over 4 x 4, one linear layer.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

STRIDES = 1, 2, 2, 2


class Block(nn.Module):
    """Convolutions beside a shortcut, which projects where size or channels change.

    Args:
        channels: In.
        width: Of the convolutions.
        stride: Of the first 3 x 3 convolution.
        bottleneck: Kernels 1, 3, 1 and four times the width out, instead of 3, 3.
    """

    def __init__(self, channels: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        out = width * expansion(bottleneck)
        if bottleneck:
            self._add(1, channels, width, 1, 1)
            self._add(2, width, width, 3, stride)
            self._add(3, width, out, 1, 1)
        else:
            self._add(1, channels, width, 3, stride)
            self._add(2, width, out, 3, 1)
        self.depth = 3 if bottleneck else 2
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != out:
            self.shortcut.append(nn.Conv2d(channels, out, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(out))

    def _add(self, index: int, channels: int, out: int, kernel: int, stride: int) -> None:
        convolution = nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False)
        self.add_module(f"conv{index}", convolution)
        self.add_module(f"bn{index}", nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for index in range(1, self.depth + 1):
            h = self.get_submodule(f"bn{index}")(self.get_submodule(f"conv{index}")(h))
            if index < self.depth:
                h = F.relu(h)
        return F.relu(h + self.shortcut(x))


def expansion(bottleneck: bool) -> int:
    """Channels out of a block, in widths."""
    return 4 if bottleneck else 1


class CifarResNet(nn.Module):
    """Residual network of small images; the defaults are the published ResNet-50.

    Args:
        num_classes: Number of logits.
        blocks: Blocks of each stage.
        bottleneck: Kind of the blocks.
        width: Width of the first stage; it doubles from stage to stage.
        image_size: Side of the images, a multiple of 32.

    Raises:
        ValueError: For another side.
    """

    in_channels = 3

    def __init__(
        self,
        num_classes: int = 10,
        blocks: Sequence[int] = (3, 4, 6, 3),
        bottleneck: bool = True,
        width: int = 64,
        image_size: int = 32,
    ) -> None:
        super().__init__()
        if image_size < 32 or image_size % 32:
            raise ValueError(f"image_size must be a multiple of 32, got {image_size}.")
        self.image_size = image_size
        self.conv1 = nn.Conv2d(self.in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        channels = width
        for stage, (count, stride) in enumerate(zip(blocks, STRIDES, strict=True)):
            layer = nn.Sequential()
            for index in range(count):
                step = stride if index == 0 else 1
                layer.append(Block(channels, width * 2**stage, step, bottleneck))
                channels = width * 2**stage * expansion(bottleneck)
            self.add_module(f"layer{stage + 1}", layer)
        self.linear = nn.Linear(channels * (image_size // 32) ** 2, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """What the last layer reads, (b, d)."""
        h = F.relu(self.bn1(self.conv1(images)))
        h = self.layer4(self.layer3(self.layer2(self.layer1(h))))
        return F.avg_pool2d(h, 4).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (b, num_classes) of standardised images (b, 3, h, w)."""
        return self.linear(self.features(images))
