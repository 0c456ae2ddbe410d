"""Networks that run otherwise and compute the same."""

import copy

import pytest
import tiny
import torch
from torch import nn
from torch.testing import assert_close

from robustguide.attacks import PGD
from robustguide.callbacks import EMA, Acceleration
from robustguide.callbacks.acceleration import networks
from robustguide.checkpoints import build
from robustguide.classifiers import Timed
from robustguide.data import Images
from robustguide.modules import RobustClassification
from robustguide.nets import EncoderUNet
from robustguide.noise import LogNormal, linear_levels


def classifier():
    torch.manual_seed(0)
    sizes = dict(image_size=8, in_channels=1, model_channels=8, out_channels=10)
    net = EncoderUNet(
        **sizes, num_res_blocks=1, attention_resolutions=[2], channel_mult=(1, 2), pool="attention"
    )
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    return Timed(net, linear_levels(), num_classes=10)


def trained(path, *callbacks, steps=3, net=None, **attack):
    held = net or classifier()
    module = RobustClassification(held, LogNormal(), PGD(0.5, steps=2, **attack))
    trainer = tiny.trainer(path, max_steps=steps, callbacks=list(callbacks))
    trainer.fit(module, datamodule=Images(batch_size=16))
    return held, trainer


def test_networks_are_found_once():
    held = classifier()
    module = nn.ModuleDict({"one": held, "again": copy.copy(held), "other": classifier()})
    assert [id(net) for net in networks(module)] == [id(held.net), id(module["other"].net)]
    assert next(iter(networks(build(tiny.denoiser())))).__class__.__name__ == "MLP"


def test_channels_last_computes_the_same(tmp_path):
    plain, _ = trained(tmp_path / "plain")
    other, _ = trained(tmp_path / "other", Acceleration(channels_last=True))
    weights = [p for p in other.parameters() if p.ndim == 4 and p.shape[2] > 1]
    assert weights and all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)
    for one, two in zip(plain.parameters(), other.parameters(), strict=True):
        assert_close(two, one, rtol=1e-4, atol=1e-5)


@pytest.mark.check
def test_a_compiled_step_computes_the_same(tmp_path):
    """In at most as many kernels as there are sizes; a copy of the network is its own."""
    plain, _ = trained(tmp_path / "plain", batch_sizes=(4, 8, 16))
    torch.compiler.reset()
    made, _ = trained(
        tmp_path / "other",
        Acceleration(compiled=True),
        EMA(decay=0.5),
        batch_sizes=(4, 8, 16),
    )
    for one, two in zip(plain.parameters(), made.parameters(), strict=True):
        assert_close(two, one, rtol=1e-3, atol=1e-4)
    assert list(made.state_dict()) == list(plain.state_dict())
    again = copy.deepcopy(made)
    with torch.no_grad():
        next(p for n, p in again.net.named_parameters() if n.endswith("c_proj.bias")).add_(1.0)
        x, sigma = torch.randn(4, 1, 8, 8), torch.ones(4)
        assert_close(again(x, sigma), made(x, sigma) + 1, rtol=1e-4, atol=1e-4)
