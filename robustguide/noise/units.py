"""Noise levels in the units of others, and noise itself."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def expand(value: Tensor, like: Tensor) -> Tensor:
    """Gives per-example values (b,) trailing axes, so that they multiply a tensor (b, ...)."""
    return value.reshape(-1, *[1] * (like.ndim - 1))


def alpha_bar_of(sigma: float) -> float:
    """Signal power of the variance-preserving chain at a noise level."""
    return 1 / (1 + sigma**2)


def sigma_of(alpha_bar: float) -> float:
    """Noise level of a point of the variance-preserving chain, alpha_bar in (0, 1]."""
    return math.sqrt((1 - alpha_bar) / alpha_bar)


def vp_scale(sigma: Tensor) -> Tensor:
    """`sqrt(1 + sigma**2)`: divides x to give x_t, multiplies a radius of x_t to give ours."""
    return (1 + sigma**2).sqrt()


def perturb(
    x_0: Float[Tensor, " b *axes"], sigma: Float[Tensor, " b"], noise: Float[Tensor, " b *axes"]
) -> Float[Tensor, " b *axes"]:
    """Adds unit noise at a level of its own for every example."""
    return x_0 + expand(sigma, x_0) * noise


def finest(device: torch.device) -> torch.dtype:
    """float64, or float32 on a device that has no other."""
    return torch.float32 if device.type == "mps" else torch.float64


def noise_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Unit normal noise on the device of x, from a generator of that device or the global one."""
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
