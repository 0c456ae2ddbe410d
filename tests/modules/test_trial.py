import pytest
import tiny
import torch

from robustguide.checkpoints import build
from robustguide.modules.trial import try_classifier, try_denoiser


def classifier(num_logits=10, num_classes=10, **net):
    net = tiny.mlp(num_logits=num_logits, **net)
    return build(
        tiny.spec("classifiers.Timed", net=net, levels=tiny.LEVELS, num_classes=num_classes)
    )


def denoiser(**arguments):
    net = {"num_classes": 10, "num_null_labels": 1} | arguments.pop("net", {})
    arguments = {"num_classes": 10, "shape": [1, 8, 8]} | arguments
    made = tiny.spec("denoisers.EpsDenoiser", net=tiny.mlp(**net), levels=tiny.LEVELS, **arguments)
    return build(made)


def test_it_leaves_no_trace():
    network, other = classifier(dropout=0.5), denoiser(net={"dropout": 0.5})
    network.net.embed.eval()
    modes = [module.training for module in network.modules()]
    state = torch.get_rng_state()
    try_classifier(network, (1, 8, 8))
    try_denoiser(other, (1, 8, 8))
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in network.modules()] == modes
    with pytest.raises(ValueError, match="cannot read"):
        try_classifier(network, (3, 8, 8))
    assert [module.training for module in network.modules()] == modes


@pytest.mark.parametrize(
    ("network", "shape", "message"),
    [
        (
            classifier(),
            (3, 8, 8),
            r"images of shape \[3, 8, 8\].*mat1 and mat2.*Build it for this",
        ),
        (
            classifier(num_logits=7),
            (1, 8, 8),
            r"num_classes 10, but .* with \[7\] logits; give both",
        ),
        (classifier(num_classes=7), (1, 8, 8), r"num_classes 7, but .* with \[10\] logits"),
    ],
)
def test_a_classifier_that_does_not_fit(network, shape, message):
    with pytest.raises(ValueError, match=message):
        try_classifier(network, shape)


@pytest.mark.parametrize(
    ("network", "shape", "message"),
    [
        (denoiser(), (1, 4, 4), r"images of shape \[1, 4, 4\]"),
        (
            denoiser(net={"num_null_labels": 0}),
            (1, 8, 8),
            r"null label \(num_null_labels\) included",
        ),
    ],
)
def test_a_denoiser_that_does_not_fit(network, shape, message):
    with pytest.raises(ValueError, match=message):
        try_denoiser(network, shape)


def test_what_fits():
    try_classifier(classifier(), (1, 8, 8))
    try_denoiser(denoiser(net={"num_null_labels": 0}, has_null=False), (1, 8, 8))
    try_denoiser(denoiser(net={"num_classes": None}, num_classes=0, has_null=False), (1, 8, 8))
