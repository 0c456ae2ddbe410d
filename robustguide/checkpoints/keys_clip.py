"""Whole CLIPs as classifiers of ImageNet: their texts become features once, on conversion.

One sentence for each class, `classifiers.clip.TEMPLATES`; `clip_classifier` takes other classes
and the 80 sentences of the published accuracies.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from robustguide.checkpoints.off_the_shelf import fitted, without_sizes
from robustguide.classifiers.clip import TEMPLATES, Architecture, clip, imagenet_names, zero_shot

Tensors = Mapping[str, Tensor]


def rn50_to_ours(tensors: Tensors) -> dict[str, Tensor]:
    """OpenAI's ResNet-50."""
    return to_ours("RN50-quickgelu", tensors)


def vit_l_14_336_to_ours(tensors: Tensors) -> dict[str, Tensor]:
    """OpenAI's ViT-L/14 at 336 pixels."""
    return to_ours("ViT-L-14-336-quickgelu", tensors)


def to_ours(
    architecture: Architecture, tensors: Tensors, class_names: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """Tensors of an `OffTheShelf` around a `ZeroShot`, from those of a whole CLIP.

    Raises:
        ValueError: They are not of this architecture.
    """
    model = clip(architecture).eval()
    model.load_state_dict(fitted(without_sizes(tensors), model, "the file"))
    names = imagenet_names() if class_names is None else class_names
    net = zero_shot(architecture, model, names, TEMPLATES)
    return {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
