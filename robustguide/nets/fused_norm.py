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
from torch import Tensor, nn

SOURCE = Path(__file__).with_name("norm_kernels.cpp")
COMPILE = ["-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-Wno-psabi", "-c"]
WIDTH = 16  # channels that the kernels take at once
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def plain(
    norm: nn.GroupNorm, x: Tensor, scale_shift: Tensor | None, activation: nn.Module | None
) -> Tensor:
    """What `normed` computes, by torch."""
    h: Tensor = norm(x)
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
    can_fuse = activation is None or type(activation) is nn.SiLU
    if not (is_last and has_memory and can_fuse and is_fast(norm, x)) or any(
        map(is_watched, (norm, activation))
    ):
        return plain(norm, x, scale_shift, activation)
    scale_shift = None if scale_shift is None else scale_shift.float().contiguous()
    return _Fused.apply(norm, x, norm.weight, norm.bias, scale_shift, activation)


def is_watched(module: nn.Module | None) -> bool:
    """Whether a module's own call does more than its forward pass."""
    if module is None:
        return False
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name) for name in hooks)


def is_fast(norm: nn.GroupNorm, x: Tensor) -> bool:
    """Whether there is a kernel for maps like these, once they are channels-last."""
    return (
        norm.weight.dtype == torch.float32
        and norm.num_channels % WIDTH == 0
        and is_known(x.device, x.dtype)
    )


def is_known(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether there are kernels for a device and dtype."""
    can_call = device.type == "cpu" and not torch.compiler.is_compiling()
    return can_call and dtype in NAMES and kernels() is not None


def arranged(x: Tensor, widths: Sequence[int]) -> Tensor:
    """Images in the layout that a network of such widths is fastest on."""
    if x.device.type != "cpu" or any(width % WIDTH for width in widths):
        return x
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    if not is_known(x.device, dtype):
        return x
    return _Arranged.apply(x)


class _Arranged(torch.autograd.Function):
    """Channels-last images, whose gradient is laid out as callers expect it."""

    @staticmethod
    def forward(ctx, x):
        return x.contiguous(memory_format=torch.channels_last)

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
    norm: nn.GroupNorm,
    tensors: list[Tensor],
    scale_shift: Tensor | None,
    *,
    silu: bool,
) -> None:
    """Calls a kernel of that name with tensors, maps first."""
    rows, channels, height, width = tensors[0].shape
    held = [norm.weight.data_ptr(), norm.bias.data_ptr()]
    held.append(0 if scale_shift is None else scale_shift.data_ptr())
    problem = _Problem(rows, height * width, channels, norm.num_groups, norm.eps, silu, *held)
    kernel = getattr(kernels(), f"{name}_{NAMES[tensors[0].dtype]}")
    kernel(ctypes.byref(problem), *(ctypes.c_void_p(each.data_ptr()) for each in tensors))


class _Fused(torch.autograd.Function):
    """`normed` by the kernels; a second derivative is that of `plain`."""

    @staticmethod
    def forward(ctx, norm, x, weight, bias, scale_shift, activation):
        y = torch.empty_like(x)
        mean, rstd = x.new_empty((2, len(x), norm.num_groups), dtype=torch.float32)
        silu = activation is not None
        run_kernel("forward", norm, [x, y, mean, rstd], scale_shift, silu=silu)
        ctx.norm, ctx.activation = norm, activation
        ctx.save_for_backward(x, weight, bias, scale_shift, mean, rstd)
        return y

    @staticmethod
    def backward(ctx, grad):
        x, weight, bias, scale_shift, mean, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():
            return None, *_plain_gradients(ctx, grad, [x, weight, bias, scale_shift]), None
        grad = grad.to(x.dtype).contiguous(memory_format=torch.channels_last)
        dx = torch.empty_like(x)
        sums = x.new_empty((len(x), 2, x.shape[1]), dtype=torch.float32)
        tensors, silu = [grad, x, dx, mean, rstd, sums], ctx.activation is not None
        run_kernel("backward", ctx.norm, tensors, scale_shift, silu=silu)
        return None, dx, *_small_gradients(ctx, sums, weight, bias, scale_shift), None


def _plain_gradients(ctx, grad: Tensor, inputs: list[Tensor | None]) -> list[Tensor | None]:
    """Of `plain`, with their graph."""
    wanted = [x for x, needs in zip(inputs, ctx.needs_input_grad[1:5], strict=True) if needs]
    x, _, _, scale_shift = inputs
    y = plain(ctx.norm, x, scale_shift, ctx.activation)
    found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True))
    return [next(found) if needs else None for needs in ctx.needs_input_grad[1:5]]


def _small_gradients(
    ctx, sums: Tensor, weight: Tensor, bias: Tensor, scale_shift: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Of weight, bias and scale_shift, from sums over pixels (b, 2, c); see the kernels."""
    _, _, needs_weight, needs_bias, needs_scale, _ = ctx.needs_input_grad
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
    except (OSError, subprocess.SubprocessError):
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
