"""Recomputed blocks: the same values and gradients, of less that is kept."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from robustguide.nets import DhariwalUNet, DiT, EDM2UNet, EncoderUNet, SongUNet, UNet
from robustguide.nets.recomputing import run
from robustguide.plans.flops import keeping

ADM = dict(image_size=8, in_channels=1, model_channels=32, num_res_blocks=1)
ADM |= dict(attention_resolutions=[2], channel_mult=(1, 2), num_head_channels=16)
EDM = dict(img_resolution=8, in_channels=1, out_channels=1, label_dim=3, model_channels=16)
EDM |= dict(channel_mult=(1, 2), num_blocks=1, attn_resolutions=[4])
EDM2 = dict(img_resolution=8, img_channels=1, label_dim=3, model_channels=16, num_blocks=1)
EDM2 |= dict(channel_mult=(1, 2), attn_resolutions=[4], channels_per_head=8)
NETS = {
    "UNet": (UNet, ADM | {"out_channels": 1, "num_classes": 3}),
    "EncoderUNet": (EncoderUNet, ADM | {"out_channels": 3, "pool": "attention"}),
    "DhariwalUNet": (DhariwalUNet, EDM | {"channels_per_head": 16}),
    "SongUNet": (SongUNet, EDM),
    "NCSN++": (SongUNet, EDM | {"encoder_type": "residual", "decoder_type": "skip"}),
    "EDM2UNet": (EDM2UNet, EDM2),
    "DiT": (DiT, dict(size=8, channels=1, hidden=32, depth=3, heads=2, num_classes=3)),
}


def made(name, *, use_checkpoint, training):
    """In float64, with dropout where the network has it, and without the zeros of a new one."""
    torch.manual_seed(0)  # of the frequencies of Fourier features
    kind, arguments = NETS[name]
    if kind is not DiT:
        arguments = arguments | {"dropout": 0.3}
    net = kind(**arguments, use_checkpoint=use_checkpoint).double().train(training)
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        parameter.data.normal_(std=0.2, generator=generator)
    return net


def evaluated(net):
    """Value, all gradients, weights afterwards, and the bytes that were kept for gradients."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 1, 8, 8, generator=generator, dtype=torch.float64).requires_grad_()
    labels = () if isinstance(net, EncoderUNet) else (torch.tensor([0, 2]),)
    torch.manual_seed(2)  # of dropout
    with keeping(net) as kept:
        value = net(x, torch.tensor([3.0, 40.0], dtype=torch.float64), *labels)
        total = value.square().sum()
    used = [x, *net.parameters()]
    gradients = torch.autograd.grad(total, used, allow_unused=True)
    return value, gradients, list(net.parameters()), kept.bytes


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_the_same_with_less_kept(name, training):
    """In training as well, where dropout draws and EDM2 writes its weights back."""
    if name == "DiT":
        pytest.importorskip("diffusers")
    (value, gradients, weights, kept), (again, regained, left, less) = (
        evaluated(made(name, use_checkpoint=switch, training=training)) for switch in (False, True)
    )
    assert_close(again, value, rtol=0, atol=1e-12)
    assert_close(regained, gradients, rtol=1e-10, atol=1e-12)
    assert_close(left, weights, rtol=0, atol=0)
    assert gradients[0].abs().amax() > 0
    assert 0 < less < kept / 2


def test_nothing_is_recomputed_without_a_gradient():
    calls = []

    class Counted(nn.Linear):
        def forward(self, x):
            calls.append(x.shape)
            return super().forward(x)

    net, x = Counted(3, 3), torch.ones(2, 3)
    with torch.no_grad():
        run(net, x, recomputes=True)
    assert len(calls) == 1
    run(net, x, recomputes=True).square().sum().backward()
    assert len(calls) == 3
