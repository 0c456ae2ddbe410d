"""Where the attack on an image starts again: where its last one ended.

Zheng et al. (2020) carry perturbations from epoch to epoch, so that fewer steps a batch make an
attack as strong. Here they are offsets of x_t: an image meets another noise level each time.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


class Starts:
    """Offsets of images by their numbers, in half precision in the memory of the host.

    They are of this process alone, and of no checkpoint: what is not known starts at 0.
    """

    def __init__(self) -> None:
        self.offsets: dict[int, Tensor] = {}

    def of(self, index: Sequence[int], like: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Offsets of images, 0 where none is known or the size was another."""
        nothing = torch.zeros(like.shape[1:], dtype=torch.float16)
        found = [self.offsets.get(number, nothing) for number in index]
        rows = [each if each.shape == nothing.shape else nothing for each in found]
        if not rows:
            return torch.zeros_like(like)
        return torch.stack(rows).to(like.device, like.dtype)

    def keep(self, index: Sequence[int], offsets: Float[Tensor, "b ..."]) -> None:
        """Remembers offsets, in place of those of the same images."""
        half = offsets.detach().to("cpu", torch.float16)
        # of their own memory: a view would keep that of a whole batch
        self.offsets.update(zip(index, (row.clone() for row in half), strict=True))
