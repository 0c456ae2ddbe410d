"""Tensors of DINOv2 as Meta publishes them, for timm's network. Oquab et al. (2023).

The names are the same. The file has a position for every patch of 518 pixels; for another size its
authors interpolate them, and features depend on how. That is done here once, in their way, so that
the network is built for one size and has nothing left to interpolate.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

REPAIR = "give the state dict of a backbone without registers, such as dinov2_vitl14_pretrain.pth"


def to_ours(
    tensors: Mapping[str, Tensor], prefix: str = "net.", size: int = 224
) -> dict[str, Tensor]:
    """Tensors of a published backbone under the names of timm's network of one size of images.

    Args:
        tensors: The state dict; the token of masked patches, which only training needs, is left
            out.
        prefix: Of our names; the network is the `net` of a classifier.
        size: Side of the images that the network is built for.

    Raises:
        ValueError: For other tensors, or a size that patches do not fill.
    """
    for name, axes in (("pos_embed", 3), ("patch_embed.proj.weight", 4)):
        if name not in tensors or tensors[name].ndim != axes:
            raise ValueError(f"{name} of {axes} axes is missing: not a DINOv2; {REPAIR}")
    patch = tensors["patch_embed.proj.weight"].shape[-1]
    if size % patch or size < patch:
        raise ValueError(f"size must be a multiple of {patch}, the side of a patch; got {size}")
    renamed = {prefix + name: t for name, t in tensors.items() if name != "mask_token"}
    renamed[f"{prefix}pos_embed"] = positions(tensors["pos_embed"], size // patch)
    return renamed


def positions(published: Tensor, side: int) -> Tensor:
    """Positions of side * side patches, from those of the published size.

    Meta's own way: bicubic without antialiasing, at the scale (side + 0.1) / published side, whose
    offset once guarded against rounding and shifts the features; the same size stays as it is.

    Args:
        published: Of the class token, and of a square of patches (1, 1 + patches, width).
        side: Patches on a side.

    Raises:
        ValueError: When the published patches are no square.
    """
    count = published.shape[1] - 1
    given = math.isqrt(max(count, 0))
    if not given or given**2 != count:
        raise ValueError(f"pos_embed has {count} patches, which are no square; {REPAIR}")
    if given == side:
        return published
    grid = published[:, 1:].float().reshape(1, given, given, -1).permute(0, 3, 1, 2)
    scale = (side + 0.1) / given
    grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    patches = grid.permute(0, 2, 3, 1).flatten(1, 2).to(published.dtype)
    return torch.cat([published[:, :1], patches], dim=1)
