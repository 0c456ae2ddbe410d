"""Group norm, scale and shift, and SiLU at once, for maps whose channels lie together on the CPU.

Convolutions are fastest on such maps (channels-last), but torch's own group norm is many times
slower on them than on contiguous ones. The kernels are compiled on first use, in about a second,
and kept in the user's cache; where that fails, or `ROBUSTGUIDE_KERNELS=0` forbids it, maps stay
contiguous and torch does the work.
"""

import ctypes
import hashlib
import os
import platform
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SOURCE = Path(__file__).with_name("norm_kernels.cpp")
COMPILE = ["-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-Wno-psabi", "-c"]
WIDTH = 16  # channels that the kernels take at once
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
Facts = tuple[int, float, nn.Module | None]  # number of groups, eps, SiLU or none


def plain(
    norm: nn.GroupNorm, x: Tensor, scale_shift: Tensor | None, activation: nn.Module | None
) -> Tensor:
    """What `normed` computes, by torch."""
    return finished(norm(x), scale_shift, activation)


def finished(h: Tensor, scale_shift: Tensor | None, activation: nn.Module | None) -> Tensor:
    """Normed maps, scaled and shifted, with their activation."""
    if scale_shift is not None:
        scale, shift = scale_shift[:, :, None, None].chunk(2, dim=1)
        h = h * (1 + scale) + shift
    return h if activation is None else activation(h)


def normed(
    norm: nn.GroupNorm,
    x: Tensor,
    scale_shift: Tensor | None = None,
    activation: nn.Module | None = None,
) -> Tensor:
    """Activation of a norm of maps (b, c, h, w), scaled and shifted by (b, 2 * c), if given.

    Modules with hooks, and activations other than SiLU, are called as ever.
    """
    is_last = x.is_contiguous(memory_format=torch.channels_last)
    has_memory = type(x) is Tensor  # not one that only stands for others, as in torch.export
    is_ours = activation is None or type(activation) is nn.SiLU
    is_ours = is_ours and not is_watched(norm) and not is_watched(activation)
    if not (is_last and has_memory and is_ours and is_fast(norm, x.dtype, x.device)):
        return plain(norm, x, scale_shift, activation)
    scale_shift = None if scale_shift is None else scale_shift.float().contiguous()
    facts = norm.num_groups, norm.eps, activation
    return _Fused.apply(x, norm.weight, norm.bias, scale_shift, facts)


def is_watched(module: nn.Module | None) -> bool:
    """Whether a module's own call does more than its forward pass."""
    if module is None:
        return False
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name) for name in hooks)


def is_fast(norm: nn.Module, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether there is a kernel of a norm for maps like these, once they are channels-last."""
    return (
        isinstance(norm, nn.GroupNorm)
        and norm.affine
        and norm.weight.dtype == torch.float32
        and norm.num_channels % WIDTH == 0
        and device.type == "cpu"
        and dtype in NAMES
        and not torch.compiler.is_compiling()
        and not is_transformed()
        and kernels() is not None
    )


def is_transformed() -> bool:
    """Whether torch.func transforms what is computed now; our functions do not know how."""
    return torch._C._are_functorch_transforms_active()


def arranged(x: Tensor, widths: Sequence[int], norm: nn.Module) -> Tensor:
    """Images in the layout that a network of such widths and such norms is fastest on."""
    autocasts = x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if autocasts else x.dtype
    is_wide = all(width % WIDTH == 0 for width in widths)
    return _Arranged.apply(x) if is_wide and is_fast(norm, dtype, x.device) else x


class _Arranged(torch.autograd.Function):
    """Channels-last images, whose gradient is laid out as callers expect it."""

    @staticmethod
    def forward(ctx, x):
        x = x.contiguous(memory_format=torch.channels_last)
        _, channels, height, width = x.shape
        # Of one channel both layouts are one, and convolutions go by the strides alone.
        return x.as_strided(x.shape, (channels * height * width, 1, width * channels, channels))

    @staticmethod
    def backward(ctx, grad):
        return grad.contiguous()


class _Problem(ctypes.Structure):
    """The struct of that name in the kernels."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "pixels", "channels", "groups")),
        ("eps", ctypes.c_float),
        ("silu", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "scale_shift")),
    ]


def run_kernel(
    name: str,
    tensors: list[Tensor],
    weight: Tensor,
    bias: Tensor,
    scale_shift: Tensor | None,
    facts: Facts,
) -> None:
    """Calls a kernel of that name with tensors, maps first."""
    rows, channels, height, width = tensors[0].shape
    groups, eps, activation = facts
    held = [weight.data_ptr(), bias.data_ptr()]
    held.append(0 if scale_shift is None else scale_shift.data_ptr())
    sizes = rows, height * width, channels, groups
    problem = _Problem(*sizes, eps, activation is not None, *held)
    kernel = getattr(kernels(), f"{name}_{NAMES[tensors[0].dtype]}")
    kernel(ctypes.byref(problem), *(ctypes.c_void_p(each.data_ptr()) for each in tensors))


class _Fused(torch.autograd.Function):
    """`normed` by the kernels; a second derivative is torch's."""

    @staticmethod
    def forward(ctx, x, weight, bias, scale_shift, facts):
        y = torch.empty_like(x)
        mean, rstd = x.new_empty((2, len(x), facts[0]), dtype=torch.float32)
        run_kernel("forward", [x, y, mean, rstd], weight, bias, scale_shift, facts)
        ctx.facts = facts
        ctx.save_for_backward(x, weight, bias, scale_shift, mean, rstd)
        return y

    @staticmethod
    def backward(ctx, grad):
        x, weight, bias, scale_shift, mean, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *_plain_gradients(ctx, grad, [x, weight, bias, scale_shift]), None
        grad = grad.to(x.dtype).contiguous(memory_format=torch.channels_last)
        dx = torch.empty_like(x)
        sums = x.new_empty((len(x), 2, x.shape[1]), dtype=torch.float32)
        tensors = [grad, x, dx, mean, rstd, sums]
        run_kernel("backward", tensors, weight, bias, scale_shift, ctx.facts)
        return dx, *_small_gradients(ctx, sums, weight, bias, scale_shift), None


def _plain_gradients(ctx, grad: Tensor, inputs: list[Tensor | None]) -> list[Tensor | None]:
    """By torch, with their graph."""
    x, weight, bias, scale_shift = inputs
    groups, eps, activation = ctx.facts
    y = finished(F.group_norm(x, groups, weight, bias, eps), scale_shift, activation)
    wanted = [x for x, needs in zip(inputs, ctx.needs_input_grad[:4], strict=True) if needs]
    found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True))
    return [next(found) if needs else None for needs in ctx.needs_input_grad[:4]]


def _small_gradients(
    ctx, sums: Tensor, weight: Tensor, bias: Tensor, scale_shift: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Of weight, bias and scale_shift, from sums over pixels (b, 2, c); see the kernels."""
    _, needs_weight, needs_bias, needs_scale, _ = ctx.needs_input_grad
    plain_sum, weighted = sums.unbind(1)
    d_scale = None
    if needs_scale:
        d_scale = torch.cat([weighted * weight + plain_sum * bias, plain_sum], dim=1)
    if not (needs_weight or needs_bias):
        return None, None, d_scale
    if scale_shift is not None:
        scale = 1 + scale_shift.chunk(2, dim=1)[0]
        plain_sum, weighted = plain_sum * scale, weighted * scale
    return weighted.sum(0), plain_sum.sum(0), d_scale


@cache
def kernels() -> ctypes.CDLL | None:
    """The compiled kernels; null without a compiler, or where they cannot be kept or loaded."""
    if os.environ.get("ROBUSTGUIDE_KERNELS") == "0":
        return None
    try:
        source = SOURCE.read_bytes()
        made_of = [source, *map(str.encode, (*COMPILE, _processor(), torch.__version__))]
        key = hashlib.sha256(b"\0".join(made_of)).hexdigest()[:16]
        kept = _folder() / f"norm-{key}.so"
        if not kept.is_file():
            _compile(kept)
        return ctypes.CDLL(str(kept))
    except (OSError, RuntimeError, subprocess.SubprocessError):  # RuntimeError: no home
        return None


def _folder() -> Path:
    held = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(held).expanduser() / "robustguide/kernels"


def _processor() -> str:
    """What its instructions are, for machines that share a home."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.is_file() else []
    flags = [line for line in lines if line.startswith(("flags", "Features", "model name"))]
    return " ".join([platform.machine(), platform.processor(), *sorted(set(flags))])


def _compile(kept: Path) -> None:
    """Makes the library, under another name until it is whole: other processes may look."""
    compiler = os.environ.get("CXX", "g++")
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
        compiled, linked = Path(folder) / "kernels.o", Path(folder) / kept.name
        _call(compiler, *COMPILE, str(SOURCE), "-o", str(compiled))
        # without -fopenmp, which would bring another OpenMP beside torch's and its threads
        _call(compiler, "-shared", str(compiled), "-o", str(linked))
        linked.replace(kept)


def _call(*command: str) -> None:
    """A compiler, silently."""
    subprocess.run(command, check=True, capture_output=True, timeout=120)
