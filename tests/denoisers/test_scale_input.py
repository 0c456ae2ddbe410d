"""Networks that are told a guidance scale."""

import pytest
import tiny
import torch
from jsonargparse import ArgumentParser
from oracles import ExactDenoiser, plane
from torch import nn
from torch.testing import assert_close

from robustguide.checkpoints import build, export, load_denoiser
from robustguide.denoisers import EDMDenoiser, EpsDenoiser, ScaleInput, at_scale
from robustguide.guidance import ClassifierFree, Guided, Scaled
from robustguide.interfaces import Denoiser, Prediction
from robustguide.nets import UNet
from robustguide.nets.adm_blocks import timestep_embedding
from robustguide.noise import linear_levels


def described(scale=0.0, layers=None):
    layers = layers or {"net.embed": 16, "net.blocks.0.enter": 16}
    return tiny.spec(
        "denoisers.ScaleInput", denoiser=tiny.denoiser(), layers=layers, scale=scale, width=8
    )


def told(scale=0.0, **arguments):
    """Whose layers and shifts are not zero."""
    torch.manual_seed(0)
    network = build(described(scale, **arguments)).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network


def inputs(rows=6):
    x, y, _ = tiny.batch(rows)
    return x, torch.linspace(0.3, 4, rows), y


def test_before_training_it_is_what_it_was_at_any_scale():
    network = build(described())
    x, sigma, y = inputs()
    expected = network.denoiser(x, sigma, y)
    for scales in (torch.zeros(1), torch.linspace(0, 5, 6)):
        with network.at(scales):
            assert torch.equal(network(x, sigma, y), expected)


def test_it_is_told_the_number_of_its_constructor():
    x, sigma, y = inputs()
    answers = [told(scale)(x, sigma, y) for scale in (0.0, 0.7, 3.0)]
    network = told()
    for scale, answer in zip((0.0, 0.7, 3.0), answers, strict=True):
        with network.at(torch.tensor([scale])):
            assert_close(network(x, sigma, y), answer)
    assert (answers[0] - answers[1]).abs().amax() > 1e-2 < (answers[1] - answers[2]).abs().amax()


def test_the_layers_are_shifted_by_an_embedding_of_the_scale():
    """Sinusoids of ten times the scale, two layers, and a linear map to the channels."""
    network = told(1.3, layers={"net.enter": 16})
    x, sigma, y = inputs()
    out = network(x, sigma, y)
    embedding = network.embed(timestep_embedding(torch.tensor([13.0]), 8))
    net = network.denoiser.net
    net.enter.bias.data += network.shifts["net/enter"](embedding)[0]
    assert_close(out, network.denoiser(x, sigma, y))


def test_every_row_is_told_its_own():
    network = told()
    x, sigma, y = inputs()
    scales = torch.tensor([0.0, 0.5, 1.0, 1.0, 2.0, 4.0])
    with network.at(scales):
        together = network(x, sigma, y)
    for i in range(6):
        with network.at(scales[i : i + 1]):
            alone = network(x[i : i + 1], sigma[i : i + 1], y[i : i + 1])
        assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-5)
    assert torch.equal(network(x, sigma, y), told(0.0)(x, sigma, y))


@pytest.mark.parametrize("scales", [None, torch.linspace(0, 2, 6)])
def test_guidance_on_top_tells_both_branches_the_same(scales):
    """Classifier-free guidance evaluates 12 rows at once."""
    network = told(0.7)
    x, sigma, y = inputs()
    guided = Guided(network, {"free": Scaled(ClassifierFree(), scale=0.5)})
    with network.at(torch.full((6,), 0.7) if scales is None else scales):
        labelled, unlabelled = network(x, sigma, y), network(x, sigma, network.null(y))
        within = guided(x, sigma, y)
    expected = labelled + 0.5 * (labelled - unlabelled)
    assert_close(within, expected, rtol=1e-4, atol=1e-5)
    if scales is None:
        assert_close(guided(x, sigma, y), expected, rtol=1e-4, atol=1e-5)


def test_channels_of_maps_are_shifted():
    torch.manual_seed(0)
    net = UNet(
        image_size=8, in_channels=1, model_channels=8, out_channels=2, num_res_blocks=1,
        attention_resolutions=[], channel_mult=[1], num_heads=1, num_classes=3, num_null_labels=1,
        use_scale_shift_norm=True,
    )  # fmt: skip
    for parameter in net.parameters():
        parameter.data.normal_(std=0.1)
    eps = EpsDenoiser(net.eval(), linear_levels(), 3, (1, 8, 8), learns_variance=True)
    network = ScaleInput(eps, {"net.out": 2, "net.time_embed": 32}, scale=2.0)
    x, sigma, y = inputs()
    y = y % 3
    plain = network.predict(x, sigma, y)
    network.shifts["net/out"].bias.data = torch.tensor([0.5, 3.0])
    shifted = network.predict(x, sigma, y)
    moved = -0.5 * sigma[:, None, None, None].expand_as(x)
    assert_close(shifted.denoised - plain.denoised, moved, rtol=1e-4, atol=1e-4)
    assert_close(shifted.fraction - plain.fraction, torch.full_like(x, 1.5))
    nn.init.normal_(network.shifts["net/time_embed"].weight)
    assert (network(x, sigma, y) - shifted.denoised).abs().amax() > 1e-3


def test_gradients_reach_what_tells_it_and_what_is_told():
    network = told()
    x, sigma, y = inputs()
    with network.at(torch.linspace(0, 2, 6)):
        network(x, sigma, y).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().amax() > 0 for p in network.shifts.parameters())
    assert all(p.grad.abs().amax() > 0 for p in network.embed.parameters())


class Failing(Denoiser):
    num_classes, shape = 3, (1, 1, 2)

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def predict(self, x, sigma, y):
        self.layer(x.flatten(1))
        raise RuntimeError("it failed")


def test_nothing_is_left_of_a_call_that_failed():
    network = ScaleInput(Failing(), {"layer": 2}, scale=0.3)
    x = torch.zeros(2, 1, 1, 2)
    with pytest.raises(RuntimeError, match="it failed"), network.at(torch.ones(2)):
        network(x, torch.ones(2), torch.zeros(2, dtype=torch.long))
    assert not network.denoiser.layer._forward_hooks
    assert torch.equal(network._scales(x), torch.tensor([0.3]))


def test_what_is_told_within_ends_there():
    network = told(0.5)
    x, sigma, y = inputs()
    with network.at(torch.tensor([2.0])):
        outer = network(x, sigma, y)
        with network.at(torch.tensor([1.0])):
            assert not torch.equal(network(x, sigma, y), outer)
        assert torch.equal(network(x, sigma, y), outer)


def test_levels_weights_and_labels_are_those_of_the_wrapped():
    levels = linear_levels()
    eps = EpsDenoiser(nn.Identity(), levels, 3, (1, 1, 2), has_null=False, learns_variance=True)
    network = ScaleInput(eps, {"net": 2})
    assert (network.num_classes, network.shape, network.has_null) == (3, (1, 1, 2), False)
    assert network.learns_variance and network.snap(1.0) == levels.snap(1.0) != 1.0
    edm = EDMDenoiser(nn.Identity(), 3, (1, 1, 2))
    network, sigma = ScaleInput(edm, {"net": 2}), torch.tensor([0.5, 2.0])
    assert torch.equal(network.loss_weight(sigma), edm.loss_weight(sigma))
    assert torch.equal(network.loss(sigma + 1, sigma), edm.loss(sigma + 1, sigma))


def test_a_file_can_be_loaded_and_told_another_scale(tmp_path):
    network, path = told(0.5), str(tmp_path / "denoiser.safetensors")
    names = [str(y) for y in range(10)]
    export(network, path, described(0.5), class_names=names, shape=(1, 8, 8), weights="raw")
    x, sigma, y = inputs()
    loaded = load_denoiser(path)
    assert torch.equal(loaded(x, sigma, y), network(x, sigma, y))
    config = tiny.spec("denoisers.at_scale", denoiser=tiny.loaded("denoiser", path), scale=2.0)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--denoiser", type=Denoiser)
    other = parser.instantiate(parser.parse_object({"denoiser": config})).denoiser
    assert torch.equal(other(x, sigma, y), told(2.0)(x, sigma, y))


def test_other_rows_than_scales_are_refused():
    network = told()
    x, sigma, y = inputs()
    with (
        network.at(torch.ones(4)),
        pytest.raises(ValueError, match=r"was told 4 scales, but denoises 6 rows; give one"),
    ):
        network(x, sigma, y)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"net.nothing": 4}, r"no layer 'net\.nothing'; its layers are net, net\.embed"),
        ({}, "none"),
    ],
)
def test_layers_must_be_there(layers, message):
    with pytest.raises(ValueError, match=message):
        ScaleInput(build(tiny.denoiser()), layers)


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf")])
def test_a_scale_is_a_number_of_at_least_0(scale):
    for make in (
        lambda: ScaleInput(Failing(), {"layer": 2}, scale),
        lambda: at_scale(told(), scale),
    ):
        with pytest.raises(ValueError, match=r"at least 0, got .*scale \+ 1"):
            make()


def test_only_a_network_that_is_told_scales_can_be_told_another():
    with pytest.raises(ValueError, match=r"ScaleInput, got ExactDenoiser, which is not told"):
        at_scale(ExactDenoiser(plane()), 1.0)


def test_it_computes_in_the_precision_of_its_inputs():
    """Half networks keep half outputs; float64 stays float64."""
    network = told(1.0).double()
    x, sigma, y = inputs()
    assert network(x.double(), sigma.double(), y).dtype == torch.float64
    prediction = told(1.0).bfloat16().predict(x, sigma, y)
    assert isinstance(prediction, Prediction) and prediction.denoised.dtype == torch.float32
