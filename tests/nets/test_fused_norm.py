"""The norm of channels-last maps is torch's, with its gradients of both orders."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from robustguide.nets import EncoderUNet, fused_norm
from robustguide.nets.fused_norm import normed, plain

needs_kernels = pytest.mark.skipif(fused_norm.kernels() is None, reason="no compiler")


def made(channels: int, dtype: torch.dtype = torch.float32, *, scaled: bool = True):
    """A norm, maps with a mean, and what scales and shifts them."""
    torch.manual_seed(0)
    norm = nn.GroupNorm(16, channels)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    x = (torch.randn(3, channels, 6, 5, dtype=dtype) + 4).requires_grad_()
    return norm, x, torch.randn(3, 2 * channels, requires_grad=True) if scaled else None


class Both(nn.Module):
    """A norm, as a part of a module, with its activation."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: torch.Tensor, scale_shift: torch.Tensor | None = None) -> torch.Tensor:
        return normed(self.norm, x, scale_shift, nn.SiLU())


def network(dtype: torch.dtype, in_channels: int = 3) -> EncoderUNet:
    """A small classifier with all kinds of blocks."""
    torch.manual_seed(0)
    net = EncoderUNet(
        image_size=16,
        in_channels=in_channels,
        model_channels=32,
        out_channels=4,
        num_res_blocks=1,
        attention_resolutions=[2],
        channel_mult=[1, 2],
        use_scale_shift_norm=True,
        resblock_updown=True,
        pool="attention",
    ).to(dtype)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    return net


def last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


@needs_kernels
@pytest.mark.parametrize("channels", [16, 48])
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_values_and_gradients_are_exact(channels, silu, scaled):
    norm, x, scale_shift = made(channels, scaled=scaled)
    grad = torch.randn_like(x)
    activation = nn.SiLU() if silu else None
    ours = normed(norm, last(x), scale_shift, activation)
    assert type(ours.grad_fn).__name__ == "_FusedBackward"
    inputs = [x, norm.weight, norm.bias, *([scale_shift] if scaled else [])]
    found = [ours, *torch.autograd.grad(ours, inputs, grad)]
    exact_norm, doubles = deepcopy(norm).double(), [each.double() for each in inputs]
    exact = plain(exact_norm, doubles[0], doubles[3] if scaled else None, activation)
    inputs = [doubles[0], exact_norm.weight, exact_norm.bias, *doubles[3:]]
    wanted = [exact, *torch.autograd.grad(exact, inputs, grad.double())]
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).norm() <= 1e-6 * other.norm()


@needs_kernels
def test_second_derivative_is_that_of_torch():
    norm, x, scale_shift = made(32)
    found = []
    for maps in (last(x), x):
        (grad,) = torch.autograd.grad(
            normed(norm, maps, scale_shift, nn.SiLU()).square().sum(), x, create_graph=True
        )
        inputs = [x, norm.weight, scale_shift]
        found.append([grad, *torch.autograd.grad(grad.square().sum(), inputs)])
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()


@needs_kernels
def test_bfloat16_rounds_once():
    norm, x, scale_shift = made(32, torch.bfloat16)
    ours = normed(norm, last(x), scale_shift, nn.SiLU())
    exact = plain(norm, x.float(), scale_shift, nn.SiLU())
    torch.testing.assert_close(ours.float(), exact, rtol=2**-8, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_that_overflow_are_seen(value, dtype):
    norm, x, _ = made(32, dtype)
    with torch.no_grad():
        x[1, 3, 2, 2] = value
        ours = normed(norm, last(x), activation=nn.SiLU())
    assert not ours[1, 3].isfinite().all() or value == 1e30
    assert ours[0].isfinite().all()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_network_is_the_same_without_kernels(dtype, channels, monkeypatch):
    net = network(dtype, channels)
    x = torch.randn(3, channels, 16, 16, dtype=dtype, requires_grad=True)
    t = torch.tensor([1, 5, 900])
    found = []
    for has in (True, False):
        if not has:
            monkeypatch.setattr(fused_norm, "kernels", lambda: None)
        logits = net(x, t)
        inputs = [x, *net.parameters()]
        found.append([logits, *torch.autograd.grad(logits.logsumexp(1).sum(), inputs)])
    least = 1e-5 if dtype == torch.float32 else 1e-12
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() <= least * other.norm() + least


@needs_kernels
def test_modules_that_do_more_are_called():
    norm, x, _ = made(32)
    seen = []
    for module in (norm, nn.SiLU()):
        activation = module if isinstance(module, nn.SiLU) else nn.SiLU()
        handle = module.register_forward_hook(lambda *call: seen.append(call[0]))
        normed(norm, last(x), activation=activation)
        assert seen.pop() is module
        handle.remove()
    ours = normed(norm, last(x), activation=nn.Softplus())
    torch.testing.assert_close(ours, nn.functional.softplus(norm(last(x))))


@needs_kernels
@pytest.mark.parametrize("channels", [1, 3])
def test_maps_of_a_network_are_channels_last(channels):
    """Those of one channel too, whose own two layouts are the same."""
    net = network(torch.float32, channels)
    x, t = torch.randn(3, channels, 16, 16), torch.tensor([1, 5, 900])
    for map_ in net.maps(x, net.embed(t)):
        assert map_.stride(1) == 1 and map_.is_contiguous(memory_format=torch.channels_last)


def test_gradients_of_images_are_laid_out_as_the_images():
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    norm = nn.GroupNorm(16, 32)
    arranged = fused_norm.arranged(x, [16, 32], norm)
    assert torch.equal(arranged, x)
    (grad,) = torch.autograd.grad((arranged * last(torch.randn_like(x))).sum(), x)
    assert grad.is_contiguous()
    assert fused_norm.arranged(x, [16, 24], norm) is x  # no kernel for such a width
    half = x.bfloat16()
    assert fused_norm.arranged(half, [16, 32], norm) is not half
    assert fused_norm.arranged(half, [16, 32], norm.bfloat16()) is half  # nor for such weights


@needs_kernels
def test_gradients_are_those_of_the_weights_that_were_used():
    """A function's weights are the module's for the time of its call alone."""
    norm, x, scale_shift = made(32)
    layer = Both(norm)
    weights = {name: torch.randn(32, requires_grad=True) for name in ("norm.weight", "norm.bias")}
    found = []
    for maps in (last(x), x):
        y = torch.func.functional_call(layer, weights, (maps, scale_shift))
        grads = torch.autograd.grad(y.square().sum(), [x, scale_shift, *weights.values()])
        found.append([y, *grads])
        (grad,) = torch.autograd.grad(
            torch.func.functional_call(layer, weights, (maps,)).square().sum(),
            x,
            create_graph=True,
        )
        found[-1] += torch.autograd.grad(grad.square().sum(), weights["norm.weight"])
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()


def test_function_transforms_are_those_of_torch():
    net = network(torch.float32)
    x, t = torch.randn(3, 3, 16, 16), torch.tensor([1, 5, 900])
    found = torch.func.grad(lambda images: net(images, t).logsumexp(1).sum())(x)
    (wanted,) = torch.autograd.grad(net(x.requires_grad_(), t).logsumexp(1).sum(), x)
    assert (found - wanted).norm() <= 1e-5 * wanted.norm()


def test_kernels_can_be_switched_off(monkeypatch):
    monkeypatch.setenv("ROBUSTGUIDE_KERNELS", "0")
    assert fused_norm.kernels.__wrapped__() is None


def test_without_a_compiler_there_are_no_kernels(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert fused_norm.kernels.__wrapped__() is None
