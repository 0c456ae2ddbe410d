"""Hashes of tensors, by which a network is known again."""

from typing import Any

import torch
from torch import Tensor


def feed(digest: Any, name: str, tensor: Tensor) -> None:
    """Adds a tensor, its name, type and shape to a hash of `hashlib`."""
    value = tensor.detach().cpu().contiguous()
    digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
    digest.update(value.flatten().view(torch.uint8).numpy().data)
