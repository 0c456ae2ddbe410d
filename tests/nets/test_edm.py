"""EDM's two networks, bare: names, sizes, and what no recording holds."""

import pytest
import torch
from golden_files import listing
from recorded_edm import NETWORKS, labels, network
from torch.testing import assert_close

from robustguide.nets import DhariwalUNet, SongUNet
from robustguide.nets.edm_blocks import Block, Norm, doubled, halved, one_hot, separable

# Small networks for Fashion-MNIST (28 px), one channel.
SMALL = dict(img_resolution=28, in_channels=1, out_channels=1, model_channels=8, num_blocks=1)
SMALL |= dict(channel_mult=(1, 2), attn_resolutions=[14], label_dim=3, dropout=0.0)
PER_HEAD = {DhariwalUNet: {"channels_per_head": 8}, SongUNet: {}}


def small(cls, **changes):
    torch.manual_seed(0)
    return randomised(cls(**(SMALL | PER_HEAD[cls] | changes)))


def randomised(net):
    """Replaces what is zero or nearly so, behind which a new network hides its gradients."""
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        if parameter.detach().abs().max() < 1e-4:
            parameter.data.normal_(std=0.1, generator=generator)
    return net.eval()


def inputs(size=28, batch=2):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 1, size, size, generator=generator)
    return x, torch.linspace(-1.0, 1.0, batch), torch.arange(batch) % 3


# Parameters of the published networks.
PUBLISHED = {
    "edm_afhqv2_64_uncond_ve_ncsnpp": 62_761_091,
    "edm_afhqv2_64_uncond_vp_ddpmpp": 61_805_571,
    "edm_cifar10_cond_ve_ncsnpp": 56_400_643,
    "edm_cifar10_cond_vp_ddpmpp": 55_735_299,
    "edm_cifar10_uncond_ve_ncsnpp": 56_397_827,
    "edm_cifar10_uncond_vp_ddpmpp": 55_733_891,
    "edm_ffhq64_uncond_ve_ncsnpp": 62_761_091,
    "edm_ffhq64_uncond_vp_ddpmpp": 61_805_571,
    "edm_imagenet64_cond_adm": 295_899_267,
}


def published(name, flags):
    """A published network, from the flags of its training."""
    given = dict(flag.removeprefix("--").split("=") for flag in flags.split())
    imagenet, cifar = "imagenet" in name, "cifar10" in name
    classes = 1000 if imagenet else 10
    arguments = dict(
        img_resolution=32 if cifar else 64,
        in_channels=3,
        out_channels=3,
        label_dim=classes if given["cond"] == "1" else 0,
        augment_dim=0 if given.get("augment") == "0" else 9,
        dropout=float(given.get("dropout", 0.13)),
    )
    if given["arch"] == "adm":
        return DhariwalUNet(**arguments)
    mult = [int(width) for width in given.get("cres", "2,2,2").split(",")]
    kind = {}
    if given["arch"] == "ncsnpp":
        kind = dict(embedding_type="fourier", encoder_type="residual", channel_mult_noise=2)
        kind |= dict(resample_filter=[1, 3, 3, 1])
    return SongUNet(**arguments, **kind, channel_mult=mult)


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_and_shapes_are_those_of_the_public_checkpoint(name):
    flags, shapes = listing(name)
    with torch.device("meta"):
        net = published(name, flags)
    ours = {f"model.{key}": tuple(value.shape) for key, value in net.state_dict().items()}
    assert ours == shapes
    assert sum(parameter.numel() for parameter in net.parameters()) == PUBLISHED[name]


@pytest.mark.parametrize("name", NETWORKS)
def test_attention_is_where_the_recorded_network_has_it(name):
    description, _, net = network(name)
    blocks = {f"model.{key}": block for key, block in net.named_modules()}
    attending = {key for key, block in blocks.items() if isinstance(block, Block) and block.heads}
    assert attending == set(description["attention_blocks"])


def test_blocks_narrower_than_a_head_have_no_attention():
    net = DhariwalUNet(**(SMALL | dict(model_channels=40, attn_resolutions=[28, 14])))
    heads = {name: block.heads for name, block in net.enc.items() if "block" in name}
    assert heads == {"28x28_block0": 0, "14x14_block0": 1}
    assert net.heads(63) == 0 and net.heads(64) == net.heads(127) == 1 and net.heads(128) == 2


def test_heads_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ValueError, match=r"224 channels.*3 heads.*channels_per_head=64"):
        DhariwalUNet(**(SMALL | dict(model_channels=224, channel_mult=[1, 1])))


@pytest.mark.parametrize("cls", [DhariwalUNet, SongUNet])
def test_small_gray_images(cls):
    net = small(cls)
    x, noise, y = inputs()
    out = net(x, noise, y)
    assert out.shape == x.shape
    assert_close(net(x[1:], noise[1:], y[1:]), out[1:])  # images of a batch do not mix
    assert (net(x, noise + 1, y) - out).abs().amax() > 1e-4  # the level is heard
    assert (net(x, noise, y + 1) - out).abs().amax() > 1e-4  # and the class
    assert net(*inputs(size=12)).shape == (2, 1, 12, 12)  # other sizes


def test_a_new_network_of_dhariwal_and_nichol_predicts_nothing():
    assert DhariwalUNet(**SMALL)(*inputs()).eq(0).all()
    assert SongUNet(**SMALL)(*inputs()).abs().max() < 1e-3


@pytest.mark.parametrize("cls", [DhariwalUNet, SongUNet])
def test_the_null_label_is_the_zero_vector(cls):
    """It predicts as any class does once the weights of the label are zero."""
    net = small(cls)
    x, noise, y = inputs()
    null = net(x, noise, torch.full_like(y, 3))
    net.map_label.weight.data.zero_()
    assert_close(net(x, noise, y), null)


def test_one_hot_labels():
    vectors = one_hot(torch.tensor([2, 0, 3]), 3, torch.float64)
    assert vectors.tolist() == [[0, 0, 1], [1, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("cls", [DhariwalUNet, SongUNet])
def test_augmentation_is_heard_and_may_be_left_out(cls):
    net = small(cls, augment_dim=4)
    x, noise, y = inputs()
    out = net(x, noise, y)
    assert_close(net(x, noise, y, torch.zeros(2, 4)), out)
    assert (net(x, noise, y, torch.ones(2, 4)) - out).abs().amax() > 1e-4


def test_the_prediction_of_a_skip_decoder_is_the_sum_of_its_levels():
    net = small(SongUNet, decoder_type="skip")
    heads = [net.dec[name] for name in ("14x14_aux_conv", "28x28_aux_conv")]
    for head in heads:
        head.bias.data.zero_()
    whole, alone = net(*inputs()), []
    for silent in reversed(heads):
        weight = silent.weight.detach().clone()
        silent.weight.data.zero_()
        alone.append(net(*inputs()))
        silent.weight.data.copy_(weight)
    lower, upper = alone
    assert_close(lower + upper, whole, rtol=1e-4, atol=1e-5)
    assert_close(lower[..., ::2, ::2], lower[..., 1::2, 1::2])  # every pixel of it is repeated
    assert lower.abs().max() > 1e-3 and upper.abs().max() > 1e-3


def test_a_skip_encoder_shows_the_halved_image_to_every_level():
    net = small(SongUNet, encoder_type="skip")
    plain = small(SongUNet)
    shared = {key: value for key, value in net.state_dict().items() if "aux" not in key}
    plain.load_state_dict(shared | {k: v for k, v in net.state_dict().items() if "dec" in k})
    x, noise, y = inputs()
    assert (net(x, noise, y) - plain(x, noise, y)).abs().amax() > 1e-4
    seen = []
    net.enc["14x14_aux_skip"].register_forward_hook(lambda _, given, out: seen.append(given[0]))
    net.enc["14x14_aux_skip"].weight.data.zero_()
    net.enc["14x14_aux_skip"].bias.data.zero_()
    assert_close(net(x, noise, y), plain(x, noise, y))
    assert_close(seen[0], torch.nn.functional.avg_pool2d(x, 2))


def test_resampling_keeps_constants_and_means():
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    box, smooth = separable([1, 1]), separable([1, 3, 3, 1])
    assert_close(halved(x, box), torch.nn.functional.avg_pool2d(x, 2))
    assert_close(doubled(x, box), x.repeat_interleave(2, -1).repeat_interleave(2, -2))
    ones = torch.ones(1, 1, 8, 8)
    inside = slice(1, -1)
    assert_close(halved(ones, smooth)[..., inside, inside], ones[..., :2, :2])
    assert_close(doubled(ones, smooth)[..., inside, inside], torch.ones(1, 1, 14, 14))
    # A delta spreads as 1/4, 3/4, 3/4, 1/4 along each axis.
    delta = torch.zeros(1, 1, 5, 5)
    delta[..., 2, 2] = 1
    row = torch.tensor([0.25, 0.75, 0.75, 0.25])
    assert_close(doubled(delta, smooth)[0, 0, 3:7, 3:7], torch.outer(row, row))


@pytest.mark.parametrize("cls", [DhariwalUNet, SongUNet])
def test_hessian_vector_product(cls):
    """The derivative of the gradient along v, against a central difference of gradients."""
    net = small(cls).double()
    x, noise, y = inputs()
    x = x.double().requires_grad_()

    def gradient(x, create_graph=False):
        value = net(x, noise, y).square().sum()
        return torch.autograd.grad(value, x, create_graph=create_graph)[0]

    v = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(0))
    (product,) = torch.autograd.grad((gradient(x, create_graph=True) * v).sum(), x)
    difference = (gradient(x + 1e-4 * v) - gradient(x - 1e-4 * v)) / 2e-4
    assert_close(product, difference, rtol=1e-4, atol=1e-5 * product.abs().max().item())


@pytest.mark.parametrize("name", ["edm_dhariwal_multihead", "edm_ve_song_ncsnpp"])
@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16(name, autocast):
    _, tensors, net = network(name)
    x, noise = tensors["in.x"] / 40, tensors["in.sigma"].log() / 4
    y = (labels(tensors),) if net.label_dim else ()
    with torch.no_grad():
        want = net(x, noise, *y)
        if autocast:
            with torch.autocast("cpu", torch.bfloat16):
                out = net(x, noise, *y)
        else:
            out = net.bfloat16()(x.bfloat16(), noise, *y)
            assert out.dtype == torch.bfloat16
    assert (out.float() - want).norm() < 0.055 * want.norm()  # 0.05 with torch's attention as well


def test_norms_have_four_channels_a_group_or_more():
    assert [Norm(channels).num_groups for channels in (8, 64, 128, 256)] == [2, 16, 32, 32]
    with pytest.raises(ValueError, match=r"2 channels cannot be normed.*multiples of 32, or of 4"):
        Norm(2)


@pytest.mark.parametrize("cls", [DhariwalUNet, SongUNet])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(channel_mult=(1, 1, 1, 1)), "img_resolution=28 cannot be halved 3 times.*of 8"),
        (dict(attn_resolutions=[7, 14]), r"names \[7\].*levels have \[28, 14\] pixels"),
        (dict(model_channels=132), "132 channels cannot be normed in 32 groups"),
    ],
)
def test_sizes_that_do_not_fit(cls, changes, message):
    with pytest.raises(ValueError, match=message):
        cls(**(SMALL | changes))


@pytest.mark.parametrize("taps", [[], [1, 2, 1], [1, -1]])
def test_filters_that_shift_or_erase_are_refused(taps):
    with pytest.raises(ValueError, match=r"resample_filter.*even number"):
        SongUNet(**SMALL, resample_filter=taps)


@pytest.mark.parametrize("cls", [DhariwalUNet, SongUNet])
def test_calls_that_do_not_fit(cls):
    x, noise, y = inputs()
    net, unconditional = small(cls), small(cls, label_dim=0)
    with pytest.raises(ValueError, match="label_dim=3 and called without labels"):
        net(x, noise)
    with pytest.raises(ValueError, match="label_dim=0 and called with labels"):
        unconditional(x, noise, y)
    with pytest.raises(ValueError, match=r"27x27 px.*multiples of 2 px"):
        net(x[..., 1:, 1:], noise, y)
    with pytest.raises(ValueError, match="augment_dim=0"):
        net(x, noise, y, torch.ones(2, 9))
    assert unconditional(x, noise).shape == x.shape
