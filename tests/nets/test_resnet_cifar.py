"""The residual networks of small images, against those of the `robustness` package."""

import importlib
import warnings

import pytest
import torch
from torch.testing import assert_close

from robustguide.nets import CifarResNet


def theirs(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(importlib.import_module("robustness.cifar_models.resnet"), name)


@pytest.mark.parametrize(
    ("name", "blocks", "bottleneck"),
    [("ResNet18", (2, 2, 2, 2), False), ("ResNet50", (3, 4, 6, 3), True)],
)
def test_names_and_shapes_in_their_order(name, blocks, bottleneck):
    with torch.device("meta"):
        ours = CifarResNet(10, blocks, bottleneck).state_dict()
        wanted = theirs(name)(num_classes=10).state_dict()
    assert [(key, each.shape) for key, each in ours.items()] == [
        (key, each.shape) for key, each in wanted.items()
    ]


@pytest.mark.parametrize(("block", "bottleneck"), [("BasicBlock", False), ("Bottleneck", True)])
@pytest.mark.parametrize("side", [32, 64])
def test_logits_and_gradients(block, bottleneck, side):
    torch.manual_seed(0)
    scale = (side // 32) ** 2
    wanted = theirs("ResNet")(theirs(block), [1, 2, 1, 1], 5, feat_scale=scale, wm=1 / 16).eval()
    for value in wanted.state_dict().values():
        if value.is_floating_point():
            value += 0.1 * torch.rand_like(value)  # other statistics than those of a new layer
    ours = CifarResNet(5, (1, 2, 1, 1), bottleneck, width=4, image_size=side).eval()
    ours.load_state_dict(wanted.state_dict())
    x = torch.randn(2, 3, side, side)
    results = []
    for net in (ours, wanted):
        x = x.detach().requires_grad_()
        logits = net(x)
        results.append((logits, *torch.autograd.grad(logits.logsumexp(-1).sum(), x)))
    for ours_, theirs_ in zip(*results, strict=True):
        assert_close(ours_, theirs_, rtol=1e-5, atol=1e-6)


def test_a_side_that_cannot_be_pooled():
    with pytest.raises(ValueError, match="multiple of 32, got 48"):
        CifarResNet(image_size=48)
