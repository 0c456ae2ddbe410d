"""Networks that run otherwise and compute the same."""

import copy
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

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
    optimizer = partial(torch.optim.SGD, lr=0.01)  # by which no rounding grows
    attack = PGD(0.5, steps=2, **attack)
    module = RobustClassification(held, LogNormal(), attack, optimizer)
    trainer = tiny.trainer(path, *callbacks, max_steps=steps)
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
    """In a process of its own: what checks types here is nothing that can be compiled."""
    compare = "import sys, test_acceleration; test_acceleration.compare(sys.argv[1])"
    paths = [Path(__file__).parent, Path(tiny.__file__).parent]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    done = subprocess.run(
        [sys.executable, "-c", compare, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "the same"


def compare(folder):
    """With as many sizes as there are to be; a copy of a compiled network is its own."""
    sizes = dict(batch_sizes=(8, 16))
    plain, _ = trained(Path(folder) / "plain", steps=1, **sizes)
    kinds = Acceleration(compiled=True), EMA(decay=0.5)
    made, _ = trained(Path(folder) / "other", *kinds, steps=1, **sizes)
    moved = off = 0.0
    for first, one, two in zip(
        classifier().parameters(), plain.parameters(), made.parameters(), strict=True
    ):
        off = max(off, float((two - one).detach().abs().max()))
        moved = max(moved, float((one - first).detach().abs().max()))
    assert off < 1e-4 * moved and moved > 0
    assert list(made.state_dict()) == list(plain.state_dict())
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    again = copy.deepcopy(made)
    with torch.no_grad():
        next(p for n, p in again.net.named_parameters() if n.endswith("c_proj.bias")).add_(1.0)
        x, sigma = torch.randn(8, 1, 8, 8), torch.ones(8)
        assert_close(again(x, sigma), made(x, sigma) + 1, rtol=1e-4, atol=1e-4)
    print("the same")
