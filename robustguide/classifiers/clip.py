"""A classifier from a network that compares images with texts.

Radford et al. (2021), section 3.1.4:

    logits = exp(logit_scale) * cos(image features, text features of the class)

The features of a class are the mean of the normalised features of its name in several sentences,
normalised again. They are computed once and kept, so a checkpoint needs no text network.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

Architecture = str | dict[str, Any]
TEMPLATES = ("a photo of a {}.",)


class ZeroShot(nn.Module):
    """The image network of a CLIP with the features of some texts; blank until it is filled.

    Args:
        architecture: Name of a model of `open_clip`, or its configuration: `embed_dim`,
            `vision_cfg`, `text_cfg` and perhaps `quick_gelu`, which OpenAI's weights need.
        num_classes: Number of texts.

    Raises:
        ImportError: `open_clip` is not installed.
        ValueError: For an architecture that is not known, or not a plain CLIP.
    """

    text_features: Tensor
    logit_scale: Tensor

    def __init__(self, architecture: Architecture, num_classes: int) -> None:
        super().__init__()
        model = clip(architecture)
        self.visual: nn.Module = model.visual
        width = configuration(architecture)["embed_dim"]
        self.register_buffer("text_features", torch.zeros(num_classes, width))
        self.register_buffer("logit_scale", model.logit_scale.detach().clone())

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Logits of standardised images; the cosines are in float32 at least."""
        features: Tensor = self.visual(images)
        with exact(images.device.type):
            dtype = torch.promote_types(features.dtype, torch.float32)
            features = F.normalize(features.to(dtype), dim=-1)
            scale = self.logit_scale.to(dtype).exp()
            return scale * features @ self.text_features.to(dtype).T


def exact(device: str) -> AbstractContextManager[object]:
    """Without mixed precision, on devices that have it; that of outlines has not."""
    if not torch.amp.is_autocast_available(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def clip(architecture: Architecture) -> Any:
    """The whole network of the library, image and text, with random weights.

    Raises:
        ImportError: `open_clip` is not installed.
        ValueError: For an architecture that is not known, or not a plain CLIP.
    """
    return _library().CLIP(**configuration(architecture))


def zero_shot(
    architecture: Architecture,
    model: Any,
    class_names: Sequence[str],
    templates: Sequence[str] = TEMPLATES,
) -> ZeroShot:
    """The classifier that a whole CLIP is for some class names.

    Args:
        architecture: Of the model.
        model: Made by `clip` and filled; its image network is taken, not copied.
        class_names: One for each class.
        templates: Sentences with `{}` where the name goes; `"{}"` takes the names as they are.

    Raises:
        ValueError: For no names, or a template without a place for them.
    """
    if not class_names or not templates or not all("{}" in each for each in templates):
        raise ValueError(
            "CLIP needs a name for every class, and templates with {} where it goes, such as "
            f"'a photo of a {{}}.'; got {len(class_names)} names and templates {list(templates)}."
        )
    with torch.device("meta"):
        net = ZeroShot(architecture, len(class_names))
    net.visual = model.visual
    net.text_features = text_features(architecture, model, class_names, templates)
    net.logit_scale = model.logit_scale.detach().clone()
    return net


@torch.no_grad()
def text_features(
    architecture: Architecture,
    model: Any,
    class_names: Sequence[str],
    templates: Sequence[str],
) -> Float[Tensor, "k d"]:
    """Unit vectors of the classes."""
    read, found = tokenizer(architecture), []
    for name in class_names:  # one class at a time bounds the memory of 80 sentences for each
        texts = read([template.replace("{}", name) for template in templates])
        features = model.encode_text(texts.to(next(model.parameters()).device), normalize=True)
        found.append(F.normalize(features.mean(0), dim=-1))
    return torch.stack(found)


def tokenizer(architecture: Architecture) -> Any:
    """The library's: called with n texts it answers their tokens, int64 (n, context_length)."""
    length = configuration(architecture)["text_cfg"].get("context_length", 77)
    return _library().SimpleTokenizer(context_length=length)


def configuration(architecture: Architecture) -> dict[str, Any]:
    """Arguments of a plain CLIP; no part of it comes from elsewhere.

    Raises:
        ImportError: `open_clip` is not installed.
        ValueError: For an architecture that is not known, or not a plain CLIP.
    """
    library = _library()
    if isinstance(architecture, str):
        name = architecture.replace("/", "-")
        found = library.get_model_config(name) if name in library.list_models() else None
        if found is None:
            raise ValueError(
                f"open_clip knows no model {architecture!r}; give one of open_clip.list_models(), "
                "such as 'ViT-L-14-336-quickgelu' for OpenAI's weights."
            )
    else:
        found = architecture
    foreign = {"embed_dim", "vision_cfg", "text_cfg"} ^ (set(found) - {"quick_gelu"})
    outside = [key for key in found.get("text_cfg", {}) if key.startswith("hf_")]
    timm = [key for key in found.get("vision_cfg", {}) if key.startswith("timm_")]
    if foreign or outside or timm:
        raise ValueError(
            f"Of open_clip's models those are read whose parts are its own; {architecture!r} has "
            f"{', '.join([*sorted(foreign), *outside, *timm])}. Take one with embed_dim, "
            "vision_cfg and text_cfg alone, such as 'ViT-B-32'."
        )
    return dict(found)


def imagenet_names() -> list[str]:
    """Names of ImageNet's 1000 classes that tell them apart in a sentence."""
    return list(_library().IMAGENET_CLASSNAMES)


def _library() -> Any:
    try:
        return import_module("open_clip")
    except ImportError as error:
        raise ImportError(
            "CLIP needs open_clip; install it with pip install 'robustguide[clip]'."
        ) from error
