"""Names of the parameters of the Inception network of the Frechet distance."""

from collections.abc import Mapping

import torch
from torch import Tensor


def to_ours(tensors: Mapping[str, Tensor], prefix: str = "net.") -> dict[str, Tensor]:
    """Tensors of a published file under the names of `robustguide.nets.FIDInception`.

    Files that were converted from the graph itself lack the number of batches that a
    normalisation was trained on; it is read by none, and becomes 0.

    Args:
        tensors: The state dict.
        prefix: Of our names; the network is the `net` of a classifier.
    """
    renamed = {prefix + name: tensor for name, tensor in tensors.items()}
    for name in tensors:
        if name.endswith(".running_mean"):
            count = name.removesuffix("running_mean") + "num_batches_tracked"
            renamed.setdefault(prefix + count, torch.tensor(0))
    return renamed


def to_official(tensors: Mapping[str, Tensor], prefix: str = "net.") -> dict[str, Tensor]:
    """The way back: the published names.

    Args:
        tensors: The state dict.
        prefix: Of our names.
    """
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
