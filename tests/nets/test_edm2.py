"""EDM2's layers against recorded numbers, and what magnitude preservation promises of them."""

import pytest
import torch
from golden_files import load, tolerance
from torch.testing import assert_close

from robustguide.nets import EDM2UNet
from robustguide.nets.edm2_blocks import (
    Downsample,
    MPConv,
    MPFourier,
    Upsample,
    mp_cat,
    mp_silu,
    mp_sum,
    normalize,
)

# A small network for grey images of 8 px.
DIGITS = dict(
    img_resolution=8,
    img_channels=1,
    label_dim=3,
    model_channels=16,
    channel_mult=(1, 2),
    num_blocks=1,
    attn_resolutions=[4],
    channels_per_head=8,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def awake(**changes):
    """A network with gains that are not zero, behind which it would hide."""
    torch.manual_seed(0)
    net = EDM2UNet(**(DIGITS | changes))
    for name, parameter in net.named_parameters():
        if name.endswith("gain"):
            parameter.data.fill_(0.7)
    return net.eval()


def inputs(net, batch=2, size=8):
    x = torch.randn(batch, 1, size, size, generator=generator())
    noise = torch.linspace(-1, 1, batch)
    return (x, noise, torch.arange(batch)) if net.label_dim else (x, noise)


def magnitude(x):
    return x.square().mean().sqrt().item()


@pytest.mark.parametrize(
    ("key", "compute"),
    [
        ("normalize_default", lambda g: normalize(g["in.x"])),
        ("normalize_dim1", lambda g: normalize(g["in.x"], dim=1)),
        ("mp_silu", lambda g: mp_silu(g["in.x"])),
        ("mp_sum_t0.5", lambda g: mp_sum(g["in.a"], g["in.b"])),
        ("mp_sum_t0.3", lambda g: mp_sum(g["in.a"], g["in.b"], 0.3)),
        ("mp_cat_t0.5", lambda g: mp_cat(g["in.x"], g["in.cat_b"])),
        ("mp_cat_t0.3", lambda g: mp_cat(g["in.x"], g["in.cat_b"], 0.3)),
        ("resample0_down", lambda g: Downsample()(g["in.x"])),
        ("resample0_up", lambda g: Upsample()(g["in.x"])),
        ("resample1_down", lambda g: Downsample([1, 3, 3, 1])(g["in.x"])),
        ("resample1_up", lambda g: Upsample([1, 3, 3, 1])(g["in.x"])),
    ],
)
def test_recorded_functions(key, compute):
    description, tensors = load("edm2_blocks")
    assert_close(compute(tensors), tensors[f"out.{key}"], **tolerance(description, f"out.{key}"))


def test_recorded_fourier_features():
    description, tensors = load("edm2_blocks")
    waves = MPFourier(10)
    waves.load_state_dict(
        {"freqs": tensors["in.fourier_freqs"], "phases": tensors["in.fourier_phases"]}
    )
    want = tensors["out.fourier"]
    assert_close(waves(tensors["in.fourier_x"]), want, **tolerance(description, "out.fourier"))


@pytest.mark.parametrize("layer", ["conv3", "conv1_gain", "linear", "linear_gain"])
def test_recorded_layers(layer):
    """One row is tiny and one is zero, so that eps shows and the two modes differ."""
    description, tensors = load("edm2_blocks")
    settings = description["mpconv"][layer]
    x = tensors.get(f"in.{layer}.x", tensors["in.x"])
    conv = MPConv(settings["in"], settings["out"], *settings["kernel"]).eval()
    conv.load_state_dict({"weight": tensors[f"in.{layer}.weight"]})
    found = {"eval": conv(x, settings["gain"])}
    assert torch.equal(conv.weight, tensors[f"in.{layer}.weight"])
    found["train"] = conv.train()(x, settings["gain"])
    found["weight_after_train"] = conv.weight
    found["eval_after_train"] = conv.eval()(x, settings["gain"])
    for key, value in found.items():
        key = f"out.{layer}.{key}"
        assert_close(value, tensors[key], **tolerance(description, key))


@pytest.mark.parametrize(
    "layer",
    [
        lambda a, b: mp_silu(a),
        lambda a, b: mp_sum(a, b, 0.3),
        lambda a, b: mp_cat(a, b[:, :20], 0.3),
        lambda a, b: MPConv(64, 64, 3, 3)(a),
        lambda a, b: MPConv(64, 64)(a[:, :, 0, 0]),
        lambda a, b: MPFourier(64)(10 * a[0, :, 0, 0]),
        lambda a, b: normalize(7 * a, dim=1),
    ],
    ids=["silu", "sum", "cat", "conv", "linear", "fourier", "normalize"],
)
def test_unit_magnitude_stays(layer):
    torch.manual_seed(0)
    a, b = torch.randn(2, 64, 64, 16, 16)
    assert magnitude(layer(a, b)) == pytest.approx(1, abs=0.06)  # a convolution's border lacks


def test_concatenated_parts_contribute_as_asked_whatever_their_number():
    torch.manual_seed(0)
    a, b = torch.randn(8, 60, 16, 16), torch.randn(8, 20, 16, 16)
    joined = mp_cat(a, b, 0.3)
    share = joined[:, 60:].square().sum() / joined[:, :60].square().sum()
    assert share == pytest.approx((0.3 / 0.7) ** 2, rel=0.03)


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1)])
def test_resampling_keeps_constants_inside(taps):
    ones = torch.ones(1, 2, 8, 8)
    for resample in (Downsample(taps), Upsample(taps)):
        assert_close(resample(ones)[..., 2:-2, 2:-2], torch.ones_like(resample(ones))[..., 4:, 4:])


def test_a_new_network_predicts_nothing():
    net = EDM2UNet(**DIGITS)
    assert net(*inputs(net)).eq(0).all()


@pytest.mark.parametrize("label_dim", [3, 0])
@pytest.mark.parametrize("training", [True, False])
def test_rows_of_a_batch_do_not_mix_and_all_inputs_are_heard(label_dim, training):
    net = awake(label_dim=label_dim).train(training)
    x, noise, *y = inputs(net)
    out = net(x, noise, *y)
    assert out.shape == x.shape
    one = slice(1, 2)
    assert_close(net(x[one], noise[one], *(each[one] for each in y)), out[one])
    assert (net(x, noise + 0.5, *y) - out).abs().amax() > 1e-3
    if y:
        assert (net(x, noise, y[0] + 1) - out).abs().amax() > 1e-3


def test_lengths_of_weights_mean_nothing():
    net = awake()
    arguments = inputs(net)
    out = net(*arguments)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("weight"):
                rows = (parameter.shape[0], *[1] * (parameter.ndim - 1))
                parameter *= 1 + 4 * torch.rand(rows, generator=generator())
    assert_close(net(*arguments), out, rtol=1e-3, atol=1e-3)  # but for eps = 1e-4


def test_gradients_leave_the_lengths_of_weights_alone():
    """What does not depend on a length has no derivative along it."""
    net = awake().double()
    weights = {name: p for name, p in net.named_parameters() if name.endswith("weight")}
    for weight in weights.values():
        weight.data *= 1e4  # so that eps = 1e-4 is nothing beside them
    x, noise, y = inputs(net)
    net(x.double(), noise.double(), y).square().sum().backward()
    for name, weight in weights.items():
        along = (weight * weight.grad).flatten(1).sum(1).abs()
        assert (along <= 1e-5 * (weight * weight.grad).flatten(1).norm(dim=1)).all(), name


def test_the_null_label_is_the_sum_with_nothing():
    """Half of the noise's embedding, scaled by sqrt 2, is what a network without labels makes."""
    net, plain = awake(), awake(label_dim=0)
    _, noise, _ = inputs(net)
    plain.emb_fourier, plain.emb_noise = net.emb_fourier, net.emb_noise
    found = net.embed(noise, torch.full((2,), 3))
    assert_close(found, mp_silu(net.emb_noise(net.emb_fourier(noise)) / 2**0.5))
    assert_close(plain.embed(noise, None), mp_silu(net.emb_noise(net.emb_fourier(noise))))


def test_dropout_acts_in_training_alone():
    net = awake(dropout=0.5)
    arguments = inputs(net)
    assert torch.equal(net(*arguments), net(*arguments))
    net.train()(*arguments)  # normalises the weights
    assert not torch.allclose(net(*arguments), net(*arguments))


def test_blocks_clamp_what_they_give():
    free, bound = awake(clip_act=None), awake(clip_act=0.1)
    bound.load_state_dict(free.state_dict())
    seen = []
    for net in (free, bound):
        block = net.dec["8x8_block1"]
        block.register_forward_hook(lambda block, given, out: seen.append(out.abs().amax().item()))
        net(*inputs(net))
    assert seen[0] > 1 and seen[1] == pytest.approx(0.1)


def test_images_of_other_sizes_and_narrow_blocks_without_attention():
    net = awake(channels_per_head=64)
    assert not any("attn" in name for name, _ in net.named_parameters())
    x, noise, y = inputs(net, size=12)
    assert net(x, noise, y).shape == x.shape


@pytest.mark.parametrize("training", [True, False])
def test_autocast(training):
    net = awake().train(training)
    arguments = inputs(net)
    want = net(*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(*arguments)
    assert (out.float() - want).norm() < 0.1 * want.norm()


def test_hessian_vector_product():
    """The derivative of the gradient along v, against a central difference of gradients."""
    net = awake().double()
    x, noise, y = inputs(net)
    x, v = x.double().requires_grad_(), torch.randn(x.shape, generator=generator(1)).double()

    def gradient(x, create_graph=False):
        loss = net(x, noise.double(), y).square().sum()
        return torch.autograd.grad(loss, x, create_graph=create_graph)[0]

    (product,) = torch.autograd.grad((gradient(x, create_graph=True) * v).sum(), x)
    difference = (gradient(x + 1e-4 * v) - gradient(x - 1e-4 * v)) / 2e-4
    assert_close(product, difference, rtol=1e-4, atol=1e-5 * product.abs().max().item())


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"img_resolution": 9}, r"img_resolution=9 cannot be halved 1 times.*multiple of 2"),
        ({"attn_resolutions": [16, 4]}, r"names \[16\], but the levels have \[8, 4\] px"),
        ({"channels_per_head": 6}, r"channels_per_head=6 makes 5 heads of 32 channels"),
        ({"resample_filter": [1, 2, 1]}, "even number of taps"),
    ],
)
def test_sizes_that_do_not_fit(changes, match):
    with pytest.raises(ValueError, match=match):
        EDM2UNet(**(DIGITS | changes))


def test_inputs_that_do_not_fit():
    net = awake()
    x, noise, y = inputs(net)
    with pytest.raises(ValueError, match=r"label_dim=3 and called without labels"):
        net(x, noise)
    with pytest.raises(ValueError, match=r"label_dim=0 and called with labels"):
        awake(label_dim=0)(x, noise, y)
    with pytest.raises(ValueError, match=r"given images of 7x8 px.*multiples of 2 px"):
        net(x[..., 1:, :], noise, y)
