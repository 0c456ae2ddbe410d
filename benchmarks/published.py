"""The published ways, plainly transcribed: what users have today, and what ours is timed against.

The recipe of robust training is that of Kawar, Ganz and Elad (2022; facts of their script for
CIFAR-10): L2 ascent on x_t from x_t itself, all rows in every step, rows at rest once they are
misclassified, in float32 and contiguous memory. The blocks are those of Dhariwal and Nichol
(2021): norms of a copy in float32, attention by products over channels that is computed again in
the backward pass, whatever their switch for that says, and torch's pooling.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from robustguide.nets.adm_blocks import AttentionBlock, GroupNorm32, MeanOfFour

FLOOR = 1e-10  # added to a gradient's norm


def normed(norm: GroupNorm32, x: Tensor) -> Tensor:
    """Group norm of a copy in float32, or float64."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    weight, bias = norm.weight.to(dtype), norm.bias.to(dtype)
    return F.group_norm(x.to(dtype), norm.num_groups, weight, bias, norm.eps).to(x.dtype)


def attended(block: AttentionBlock, x: Tensor) -> Tensor:
    """Attention of maps (b, c, h, w), with products over the channels of queries and keys."""
    b, c = x.shape[:2]
    h = normed(block.norm, x.reshape(b, c, -1))
    qkv = F.conv1d(h, block.qkv.weight, block.qkv.bias)
    width, heads = c // block.heads, b * block.heads
    if block.heads_first:
        q, k, v = qkv.reshape(heads, 3 * width, -1).split(width, dim=1)
    else:
        q, k, v = (each.reshape(heads, width, -1) for each in qkv.chunk(3, dim=1))
    scale = 1 / math.sqrt(math.sqrt(width))
    weight = torch.einsum("bct,bcs->bts", q * scale, k * scale)
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32)).softmax(-1).to(q.dtype)
    h = torch.einsum("bts,bcs->bct", weight, v).reshape(b, c, -1)
    return x + F.conv1d(h, block.proj_out.weight, block.proj_out.bias).reshape(x.shape)


def recomputed(block: AttentionBlock, x: Tensor) -> Tensor:
    """Attention that keeps its input alone and is computed again for its gradient."""
    return checkpoint(attended, block, x, use_reentrant=False)


def as_published(net: nn.Module) -> nn.Module:
    """The same network, changed in place to run its blocks as published."""
    forwards = {
        AttentionBlock: recomputed,
        GroupNorm32: normed,
        MeanOfFour: lambda _, x: F.avg_pool2d(x, 2),
    }
    for block in net.modules():
        if type(block) in forwards:
            block.forward = partial(forwards[type(block)], block)  # type: ignore[method-assign]
    return contiguous(net)


def contiguous(net: nn.Module) -> nn.Module:
    """The same network, which leaves maps in the layout of the images."""
    net.arranged = lambda x: x  # type: ignore[assignment]
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


def trained(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    x_t: Tensor,
    y: Tensor,
    t: Tensor,
    radius: float,
    steps: int,
) -> list[Tensor]:
    """A step of training on adversaries; which rows were right before each step of the attack."""
    adversary, history = attacked(net, x_t, y, t, radius, steps)
    loss = F.cross_entropy(net(adversary, t), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return history


@dataclass(frozen=True)
class Guide:
    """How the plain loop guides: without labels within an interval, and by a classifier.

    Attributes:
        net: Predicts the noise of x_t (b, c, h, w) at t (b,) for labels (b,).
        classifier: Logits of x_t at t; null guides without one.
        null: Label that means no class.
        weight: Of classifier-free guidance; 1 is none.
        low: Where the interval begins, a noise level sigma.
        high: Where it ends.
        scale: Of the classifier's gradient.
        clip: Bound of the predicted clean image, before the gradient; null does not clip.
    """

    net: nn.Module
    classifier: nn.Module | None
    null: int
    weight: float
    low: float
    high: float
    scale: float
    clip: float | None = None

    @torch.no_grad()
    def predicted(self, x_t: Tensor, t: Tensor, y: Tensor, sigma: float) -> Tensor:
        """Noise, by one pass for the label and one without."""
        eps: Tensor = self.net(x_t, t, y)
        if self.low < sigma <= self.high:
            without = self.net(x_t, t, torch.full_like(y, self.null))
            eps = without + self.weight * (eps - without)
        return eps

    def clipped(self, x_0: Tensor) -> Tensor:
        """Within the bound."""
        return x_0 if self.clip is None else x_0.clamp(-self.clip, self.clip)

    def gradient(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Of log p(y | x_t), times the scale."""
        if self.classifier is None:
            return torch.zeros_like(x_t)
        with torch.enable_grad():
            leaf = x_t.detach().requires_grad_()
            chosen = self.classifier(leaf, t).log_softmax(-1)[range(len(y)), y]
            (grad,) = torch.autograd.grad(chosen.sum(), leaf)
        return self.scale * grad


@torch.no_grad()
def ancestral(
    guide: Guide,
    x_t: Tensor,
    y: Tensor,
    steps: Sequence[int],
    alpha_bars: Sequence[float],
    randn_like: Callable[[Tensor], Tensor],
) -> Tensor:
    """The chain's own loop, in x_t: Ho et al. (2020), eq. 7; Dhariwal and Nichol (2021), Alg. 1.

    Args:
        guide: Guides.
        x_t: Unit noise.
        y: Labels.
        steps: Of the full chain, descending.
        alpha_bars: Of the full chain.
        randn_like: Noise of the steps.
    """
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        t = torch.full((len(y),), float(step), device=x_t.device)
        bar = alpha_bars[step]
        bar_next = 1.0 if following is None else alpha_bars[following]
        beta = 1 - bar / bar_next
        eps = guide.predicted(x_t, t, y, math.sqrt(1 / bar - 1))
        x_0 = guide.clipped((x_t - math.sqrt(1 - bar) * eps) / math.sqrt(bar))
        mean = math.sqrt(bar_next) * beta / (1 - bar) * x_0
        mean = mean + math.sqrt(1 - beta) * (1 - bar_next) / (1 - bar) * x_t
        variance = (1 - bar_next) / (1 - bar) * beta
        grad = guide.gradient(x_t, t, y)
        x_t = mean + variance * grad
        if following is not None:
            x_t = x_t + math.sqrt(variance) * randn_like(x_t)
    return x_t


@torch.no_grad()
def heun(
    guide: Guide,
    x: Tensor,
    y: Tensor,
    sigmas: Sequence[float],
    t_of: Callable[[Tensor], Tensor],
) -> Tensor:
    """EDM's loop, Karras et al. (2022), Alg. 1, with a network of x_t behind it.

    Args:
        guide: Guides.
        x: Unit noise times the first level.
        y: Labels.
        sigmas: Levels, descending, 0 last.
        t_of: Steps of the chain at levels (b,).
    """

    def slope(x: Tensor, sigma: float) -> Tensor:
        scale = math.sqrt(1 + sigma**2)
        t = t_of(x.new_full((len(y),), sigma))
        x_0 = guide.clipped(x - sigma * guide.predicted(x / scale, t, y, sigma))
        return (x - x_0) / sigma - sigma * guide.gradient(x / scale, t, y) / scale

    for sigma, following in pairwise(sigmas):
        d = slope(x, sigma)
        euler = x + (following - sigma) * d
        if following > 0:
            euler = x + (following - sigma) * (d + slope(euler, following)) / 2
        x = euler
    return x
