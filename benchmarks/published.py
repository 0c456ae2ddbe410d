"""The published ways, plainly transcribed: what users have today, and what ours is timed against.

The recipe of robust training is that of Kawar, Ganz and Elad (2022; facts of their script for
CIFAR-10): L2 ascent on x_t from x_t itself, all rows in every step, rows at rest once they are
misclassified, in float32 and contiguous memory. Attention is computed again in the backward pass,
as in the networks of Dhariwal and Nichol (2021), whatever their switch for that says.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from robustguide.nets.adm_blocks import AttentionBlock

FLOOR = 1e-10  # added to a gradient's norm


def with_recomputed_attention(net: nn.Module) -> nn.Module:
    """The same network, whose attention keeps its input alone and is computed again."""
    for block in net.modules():
        if isinstance(block, AttentionBlock):
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]
    return net


def attacked(
    net: nn.Module, x_t: Tensor, y: Tensor, t: Tensor, radius: float, steps: int
) -> tuple[Tensor, list[Tensor]]:
    """Adversaries of noisy images, and which rows were still right before each step.

    Args:
        net: Maps images x_t (b, c, h, w) and steps t (b,) to logits.
        x_t: Noisy images in VP units.
        y: Labels.
        t: Steps of the chain.
        radius: Of the L2 ball around each of x_t.
        steps: Number of steps, each of 2.5 radius / steps; none follows once all rows are wrong.
    """
    start, moving, history = x_t.detach(), x_t.detach(), []
    for _ in range(steps):
        moving = moving.requires_grad_()
        logits = net(moving, t)
        right = logits.argmax(1) == y
        history.append(right)
        if not right.any():
            break
        (grad,) = torch.autograd.grad(F.cross_entropy(logits, y), moving)
        with torch.no_grad():
            norm = grad.flatten(1).norm(dim=1)[:, None, None, None]
            offset = moving + 2.5 * radius / steps * grad / (norm + FLOOR) - start
            norm = offset.flatten(1).norm(dim=1)[:, None, None, None]
            offset = offset * radius / norm.clamp(min=radius)
            moving = torch.where(right[:, None, None, None], start + offset, moving.detach())
    return moving.detach(), history
