"""No sampler waits for the device: all run where tensors have no values to be asked for."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from robustguide import samplers
from robustguide.classifiers import Timed
from robustguide.denoisers import EDMDenoiser, EpsDenoiser
from robustguide.guidance import ClassifierFree, ClassifierGuidance, Scaled, Within
from robustguide.nets import MLP
from robustguide.noise import ChainGrid, ExponentialGrid, RhoGrid, VPGrid, VPTime, linear_levels
from robustguide.samplers import (
    DDIM,
    Ancestral,
    DPMSolver2M,
    EulerAncestral,
    Heun,
    Large,
    Learned,
    RungeKutta,
    Sampler,
    Small,
    VPScaling,
)

SHAPE, LEVELS = (1, 4, 4), linear_levels()
CHAIN = ChainGrid(LEVELS, "4")
SAMPLERS = {
    "heun": Heun(RhoGrid(4)),
    "heun_churn": Heun(RhoGrid(4), 1.0, "float64", churn=4.0, guides_corrector=False),
    "runge_kutta": RungeKutta(
        VPGrid(4), None, "float64", time=VPTime(), scaling=VPScaling(), alpha=0.5
    ),
    "ddim": DDIM(CHAIN, 1.0, eta=0.5),
    "euler_ancestral": EulerAncestral(RhoGrid(4), 1.0),
    "dpm": DPMSolver2M(ExponentialGrid(4), 1.0),
    "dpm_chain": DPMSolver2M(CHAIN, state_dtype="float64"),
    "ancestral_learned": Ancestral(CHAIN, 1.0, variance=Learned()),
    "ancestral_small": Ancestral(RhoGrid(4), variance=Small()),
    "ancestral_large": Ancestral(CHAIN, variance=Large()),
}


def test_every_sampler_is_here():
    exported = {getattr(samplers, name) for name in samplers.__all__}
    classes = {each for each in exported if isinstance(each, type) and issubclass(each, Sampler)}
    assert {type(sampler) for sampler in SAMPLERS.values()} == classes - {Sampler}


class Doubled(nn.Module):
    """A network with learned variances."""

    def __init__(self):
        super().__init__()
        self.net = MLP(shape=SHAPE, width=4, depth=1, num_classes=3, num_null_labels=1)

    def forward(self, x_t, t, y):
        out = self.net(x_t, t, y)
        return torch.cat([out, out], dim=1)


def parts(kind):
    """A guided denoiser of a kind, on the current device."""
    if kind == "chain":
        denoiser = EpsDenoiser(Doubled(), LEVELS, 3, SHAPE, learns_variance=True)
    else:
        net = MLP(shape=SHAPE, width=4, depth=1, num_classes=3, num_null_labels=1)
        denoiser = EDMDenoiser(net, 3, SHAPE)
    classifier = Timed(MLP(shape=SHAPE, width=4, depth=1, num_logits=3), LEVELS, 3)
    terms = {
        "classifier": Scaled(Within(ClassifierGuidance(classifier), 0.1, 50.0), 2.0),
        "free": Scaled(ClassifierFree(), 0.5),
    }
    return denoiser, terms


class Waits(TorchDispatchMode):
    """Counts the values of tensors that Python asked for."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, "chain") for name in SAMPLERS]
    + [(name, "continuous") for name in SAMPLERS if "learned" not in name],
)
def test_a_sampler_asks_for_no_value_on_the_device(name, kind):
    """A meta tensor has none, cannot be moved to the host, and does not mix with host tensors."""
    sampler = SAMPLERS[name]
    with torch.device("meta"):
        denoiser, terms = parts(kind)
        noise, y = torch.empty(2, *SHAPE), torch.zeros(2, dtype=torch.long)
    x = sampler.start(noise, denoiser)
    last = sampler(denoiser, terms, x, y, torch.empty_like)
    assert last.is_meta and last.shape == (2, *SHAPE)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_asks_for_no_value_on_the_host_either(name):
    sampler = SAMPLERS[name]
    denoiser, terms = parts("chain")
    x = sampler.start(torch.ones(2, *SHAPE), denoiser)
    y = torch.tensor([0, 2])
    with Waits() as waits:
        assert waits.count == 0 and x.sum().item()  # it does count
        assert waits.count == 1
        sampler(denoiser, terms, x, y, torch.randn_like)
    assert waits.count == 1
