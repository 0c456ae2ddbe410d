import pytest
import torch
from golden_files import listing, load, tolerance, weights
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from robustguide.nets import EncoderUNet, SuperResUNet, UNet
from robustguide.nets.adm_blocks import GroupNorm32, MeanOfFour, attend, timestep_embedding

UNETS = ["gd_unet_adm", "gd_unet_mixed", "gd_unet_neworder", "kawar_cifar_unet"]
CLASSIFIERS = ["gd_classifier_adaptive", "gd_classifier_attention", "gd_classifier_spatial"]
# Small networks for digits (8 px) and Fashion-MNIST (28 px), one channel each.
DIGITS = dict(
    image_size=8,
    in_channels=1,
    model_channels=24,
    num_res_blocks=1,
    attention_resolutions=[2],
    channel_mult=(1, 2),
    num_heads=2,
)
FASHION = DIGITS | dict(image_size=28, channel_mult=(1, 1.5, 2), attention_resolutions=[2, 4])


def unet(name):
    description, tensors = load(name)
    net = UNet(**({"image_size": 16} | description["constructor"])).eval()
    net.load_state_dict(weights(tensors), strict=True)
    return description, tensors, net


def classifier(name, **changes):
    description, tensors = load(name)
    net = EncoderUNet(**(description["constructor"] | changes)).eval()
    net.load_state_dict(weights(tensors), strict=True)
    return description, tensors, net


def randomised(net, seed=0):
    """Replaces the zeros of a new network, behind which it would hide its value and gradients."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        if not parameter.detach().any():
            parameter.data.normal_(std=0.05, generator=generator)
    return net.eval()


def inputs(net, batch=2, size=None, seed=0):
    size = net.image_size if size is None else size
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, net.in_channels, size, size, generator=generator)
    return x, torch.linspace(3, 900, batch)


@pytest.mark.parametrize("name", UNETS)
def test_unet_reproduces_the_recorded_prediction_and_gradient(name):
    description, tensors, net = unet(name)
    x = tensors["in.x"].requires_grad_()
    out = net(x, tensors["in.t"], tensors.get("in.y"))
    (grad,) = torch.autograd.grad((out * tensors["in.grad_out"]).sum(), x)
    torch.testing.assert_close(out, tensors["out.y"], **tolerance(description, "out.y"))
    torch.testing.assert_close(grad, tensors["out.grad_x"], **tolerance(description, "out.grad_x"))


@pytest.mark.parametrize("name", [name for name in UNETS if name != "kawar_cifar_unet"])
def test_unet_takes_steps_between_integers(name):
    description, tensors, net = unet(name)
    out = net(tensors["in.x"], tensors["in.t_float"], tensors.get("in.y"))
    key = "out.y_float_t"
    torch.testing.assert_close(out, tensors[key], **tolerance(description, key))


@pytest.mark.parametrize("use_checkpoint", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifier_reproduces_the_recorded_logits_and_gradient(name, frozen, use_checkpoint):
    description, tensors, net = classifier(name, use_checkpoint=use_checkpoint)
    net.requires_grad_(not frozen)
    x = tensors["in.x"].requires_grad_()
    logits = net(x, tensors["in.t"])
    log_p = logits.log_softmax(-1).gather(-1, tensors["in.y"][:, None])[:, 0]
    (grad,) = torch.autograd.grad(log_p.sum(), x)
    found = {"logits": logits, "log_probs_y": log_p, "grad_log_py_x": grad}
    for key, value in found.items():
        key = f"out.{key}"
        torch.testing.assert_close(value, tensors[key], **tolerance(description, key))


@pytest.mark.parametrize("dim", [32, 33])
def test_timestep_embedding(dim):
    description, tensors = load("gd_schedules")
    embedding = timestep_embedding(tensors["in.emb_t"], dim)
    want = tensors[f"out.timestep_embedding_{dim}"]
    torch.testing.assert_close(embedding, want, **description["tolerance"]["embedding"])


# Widths of the levels by image size, as released with Dhariwal and Nichol (2021).
MULT = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
}
KAWAR_MULT = {"": (1, 2, 2, 2), "classifier_": (1, 2, 2, 4)}  # 32 px, Kawar et al. (2022)


def parsed(flags, prefix):
    """Constructor arguments, from the flags with which a network was published."""
    words = flags.split(" (")[0].split()
    given = dict(zip(words[::2], words[1::2], strict=True))

    def flag(name, default):
        return given.get(f"--{prefix}{name}", default)

    size = int(given.get("--image_size", given.get("--large_size")))
    pixels = flag("attention_resolutions", "32,16,8" if size > 32 else "16,8").split(",")
    # An upsampler to 512 px has the widths of 256 px.
    known = MULT if "--image_size" in given else MULT | {512: MULT[256]}
    return flag, dict(
        image_size=size,
        attention_resolutions=[size // int(n) for n in pixels],
        channel_mult=known.get(size, KAWAR_MULT[prefix]),
    )


def published_unet(flags):
    flag, arguments = parsed(flags, "")
    super_resolution = flag("large_size", None) is not None
    classes = 1000 if arguments["image_size"] > 32 else 10
    return (SuperResUNet if super_resolution else UNet)(
        **arguments,
        in_channels=6 if super_resolution else 3,
        model_channels=int(flag("num_channels", None)),
        out_channels=6 if flag("learn_sigma", None) == "True" else 3,
        num_res_blocks=int(flag("num_res_blocks", None)),
        dropout=float(flag("dropout", 0)),
        num_classes=classes if flag("class_cond", "False") == "True" else None,
        num_heads=int(flag("num_heads", 4)),
        num_head_channels=int(flag("num_head_channels", -1)),
        # The CIFAR-10 network is improved-diffusion's, which has this on unless told otherwise.
        use_scale_shift_norm=flag("use_scale_shift_norm", "True") == "True",
        resblock_updown=flag("resblock_updown", "False") == "True",
        use_new_attention_order=flag("use_new_attention_order", "False") == "True",
    )


def published_classifier(flags):
    flag, arguments = parsed(flags, "classifier_")
    return EncoderUNet(
        **arguments,
        in_channels=3,
        model_channels=int(flag("width", 128)),
        out_channels=1000 if arguments["image_size"] > 32 else 10,
        num_res_blocks=int(flag("depth", 2)),
        num_head_channels=64,
        use_scale_shift_norm=True,
        resblock_updown=True,
        pool=flag("pool", "attention"),
    )


@pytest.mark.parametrize(
    "name",
    [
        "adm_imagenet64_diffusion",
        "adm_imagenet128_diffusion",
        "adm_imagenet256_diffusion",
        "adm_imagenet256_diffusion_uncond",
        "adm_imagenet512_diffusion",
        "adm_lsun256_diffusion",
        "adm_upsampler_64_256",
        "adm_upsampler_128_512",
        "adm_classifier_64",
        "adm_classifier_128",
        "adm_classifier_256",
        "adm_classifier_512",
        "kawar_cifar10_classifier",
        "kawar_cifar10_diffusion",
        "kawar_imagenet128_classifier",
    ],
)
def test_names_and_shapes_are_those_of_the_public_checkpoint(name):
    flags, shapes = listing(name)
    published = published_classifier if "classifier" in name else published_unet
    with torch.device("meta"):
        net = published(flags)
    assert {key: tuple(value.shape) for key, value in net.state_dict().items()} == shapes


@pytest.mark.parametrize("arguments", [DIGITS, FASHION], ids=["8px", "28px"])
@pytest.mark.parametrize("resblock_updown", [False, True])
def test_small_gray_images(arguments, resblock_updown):
    net = UNet(**arguments, out_channels=1, resblock_updown=resblock_updown)
    x, t = inputs(net)
    assert net(x, t).eq(0).all()  # a new network predicts nothing
    out = randomised(net)(x, t)
    assert out.shape == x.shape
    torch.testing.assert_close(net(x[1:], t[1:]), out[1:])  # images of a batch do not mix
    assert (net(x, t + 1) - out).abs().amax() > 1e-5  # the step is heard


@pytest.mark.parametrize("pool", ["adaptive", "attention", "spatial", "spatial_v2"])
def test_classifier_of_small_gray_images(pool):
    net = randomised(EncoderUNet(**FASHION, out_channels=10, pool=pool))
    x, t = inputs(net)
    logits = net(x, t)
    assert logits.shape == (2, 10)
    torch.testing.assert_close(net(x[1:], t[1:]), logits[1:])


def test_spatial_v2_has_the_published_layers():
    with torch.device("meta"):
        net = EncoderUNet(**DIGITS, out_channels=10, pool="spatial_v2")
    maps = 24 + 24 + 24 + 48 + 48  # stem, block, downsampling, block, middle
    assert {key: tuple(value.shape) for key, value in net.out.state_dict().items()} == {
        "0.weight": (2048, maps),
        "0.bias": (2048,),
        "1.weight": (2048,),
        "1.bias": (2048,),
        "3.weight": (10, 2048),
        "3.bias": (10,),
    }


def test_convolutional_pools_take_images_of_other_sizes():
    small = randomised(EncoderUNet(**DIGITS, out_channels=10))
    large = EncoderUNet(**(DIGITS | dict(image_size=12)), out_channels=10).eval()
    large.load_state_dict(small.state_dict())
    x, t = inputs(large)
    torch.testing.assert_close(small(x, t), large(x, t), rtol=0, atol=0)


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (48, 24), (8, 8), (33, 11), (37, 1)])
def test_number_of_groups(channels, groups):
    assert GroupNorm32(channels).num_groups == groups


def test_norm_is_computed_in_float32():
    """In bfloat16 a mean of 300 would leave the deviations of 1 with an error of 1."""
    x = (300 + torch.randn(2, 64, 8, 8, generator=torch.Generator().manual_seed(0))).bfloat16()
    norm = GroupNorm32(64)
    want = norm(x.double()).float()
    torch.testing.assert_close(norm.bfloat16()(x).float(), want, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize("name", ["gd_unet_adm", "gd_unet_neworder"])
def test_bfloat16_network(name):
    _, tensors, net = unet(name)
    out = net.bfloat16()(tensors["in.x"].bfloat16(), tensors["in.t"], tensors.get("in.y"))
    assert out.dtype == torch.bfloat16
    want = tensors["out.y"]
    assert (out.float() - want).norm() < 0.05 * want.norm()


def test_autocast():
    _, tensors, net = classifier("gd_classifier_attention")
    with torch.autocast("cpu", torch.bfloat16):
        logits = net(tensors["in.x"], tensors["in.t"])
    want = tensors["out.logits"]
    assert (logits.float() - want).norm() < 0.05 * want.norm()


def test_attention_has_a_second_derivative():
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 4, 3, dtype=torch.double, generator=generator)
    qkv = [each.clone().requires_grad_() for each in (q, k, v)]
    assert torch.autograd.gradcheck(attend, qkv)
    assert torch.autograd.gradgradcheck(attend, qkv)


def test_hessian_vector_product_of_the_classifier():
    """The derivative of the gradient along v, against a central difference of gradients."""
    _, tensors, net = classifier("gd_classifier_attention")
    net, t = net.double(), tensors["in.t"]

    def gradient(x, create_graph=False):
        log_p = net(x, t).log_softmax(-1).gather(-1, tensors["in.y"][:, None])
        return torch.autograd.grad(log_p.sum(), x, create_graph=create_graph)[0]

    x = tensors["in.x"].double().requires_grad_()
    v = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(0))
    (product,) = torch.autograd.grad((gradient(x, create_graph=True) * v).sum(), x)
    difference = (gradient(x + 1e-4 * v) - gradient(x - 1e-4 * v)) / 2e-4
    torch.testing.assert_close(product, difference, rtol=1e-4, atol=1e-6 * product.abs().max())


def test_recomputed_blocks_leave_all_gradients_unchanged():
    net = randomised(UNet(**DIGITS, out_channels=1, num_classes=3))
    x, t = inputs(net)
    y = torch.tensor([0, 2])

    def gradients():
        return torch.autograd.grad(net(x, t, y).square().sum(), list(net.parameters()))

    plain = gradients()
    net.use_checkpoint = True
    torch.testing.assert_close(gradients(), plain, rtol=1e-5, atol=1e-6)


def test_null_label_is_one_more_row():
    """Given the row of class 1, it predicts as class 1 does; other labels as before."""
    plain = randomised(UNet(**DIGITS, out_channels=1, num_classes=3))
    net = UNet(**DIGITS, out_channels=1, num_classes=3, num_null_labels=1).eval()
    state = plain.state_dict()
    table = state["label_emb.weight"]
    net.load_state_dict(state | {"label_emb.weight": torch.cat([table, table[1:2]])})
    x, t = inputs(net)
    want = plain(x, t, torch.tensor([1, 2]))
    torch.testing.assert_close(net(x, t, torch.tensor([3, 2])), want)


def test_super_resolution_sees_the_enlarged_image():
    net = randomised(SuperResUNet(**(DIGITS | dict(in_channels=2)), out_channels=1))
    x, t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.ones(2)
    low_res = torch.tensor([[0.0, 1.0], [2.0, 3.0]]).expand(2, 1, 2, 2)
    # Bilinear by a factor of 4 puts new samples at -3/8, -1/8, 1/8, ... of an old pixel's width.
    ramp = (torch.arange(8) / 4 - 0.375).clamp(0, 1)
    enlarged = (ramp[None, :] + 2 * ramp[:, None]).expand(2, 1, 8, 8)
    want = UNet.forward(net, torch.cat([x, enlarged], dim=1), t)
    torch.testing.assert_close(net(x, t, low_res), want)


def test_unknown_pool():
    with pytest.raises(ValueError, match=r"pool='mean'.*adaptive, attention, spatial, spatial_v2"):
        EncoderUNet(**DIGITS, out_channels=10, pool="mean")


def test_attention_pool_says_which_size_it_expects():
    net = EncoderUNet(**DIGITS, out_channels=10, pool="attention")
    with pytest.raises(ValueError, match=r"10x10 px.*expects 8x8"):
        net(*inputs(net, size=10))


def test_unet_refuses_images_that_its_levels_cannot_halve():
    net = UNet(**FASHION, out_channels=1)
    with pytest.raises(ValueError, match=r"10x10 px.*multiples of 4 px"):
        net(*inputs(net, size=10))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(image_size=28, channel_mult=(1, 2, 2, 2)), "28 cannot be halved 3 times.*4 levels"),
        (dict(attention_resolutions=[8, 4]), r"names \[4, 8\].*factors \[1, 2\].*give 8 / n"),
        (dict(num_heads=5), "num_heads=5 does not divide the 48 channels"),
        (dict(num_head_channels=64), "num_head_channels=64 does not divide the 48 channels"),
        (dict(num_null_labels=1), "num_null_labels=1 needs.*num_classes"),
    ],
)
def test_sizes_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        UNet(**(DIGITS | changes), out_channels=1)


def test_labels_go_with_classes():
    y = torch.zeros(2, dtype=torch.long)
    with_classes = UNet(**DIGITS, out_channels=1, num_classes=3)
    without = UNet(**DIGITS, out_channels=1)
    with pytest.raises(ValueError, match="num_classes=3 and called without labels"):
        with_classes(*inputs(with_classes))
    with pytest.raises(ValueError, match="num_classes=None and called with labels"):
        without(*inputs(without), y)


ROUNDINGS = [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 2**-7)]


@pytest.mark.parametrize(("dtype", "rounding"), ROUNDINGS)
@pytest.mark.parametrize("size", [(8, 6), (7, 5), (2, 2)])
def test_the_mean_of_four_is_the_pooling(dtype, rounding, size):
    """With its gradient, and of memory in any order."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3, 5, *size, generator=generator).to(dtype) + 1
    for each in (x, x.to(memory_format=torch.channels_last), x.mT):
        leaves = [each.clone().requires_grad_() for _ in range(2)]
        made, want = MeanOfFour()(leaves[0]), torch.nn.functional.avg_pool2d(leaves[1], 2)
        torch.testing.assert_close(made, want, rtol=rounding, atol=0)
        weight = torch.rand(want.shape, generator=generator).to(dtype)
        grads = [
            torch.autograd.grad(o, i, weight)[0] for o, i in zip((made, want), leaves, strict=True)
        ]
        assert torch.equal(*grads)


def test_the_mean_of_four_can_be_derived_twice():
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(MeanOfFour(), (x,))
    assert torch.autograd.gradgradcheck(lambda x: MeanOfFour()(x.sin()), (x,))


@pytest.mark.parametrize(("dtype", "rounding"), ROUNDINGS)
@pytest.mark.parametrize("length", [17, 100])
def test_attention_is_torchs(dtype, rounding, length):
    generator = torch.Generator().manual_seed(0)
    qkv = 3 * torch.randn(3, 2, 3, 8, length, generator=generator).to(dtype).mT
    q, k, v = qkv.unbind(2)
    with sdpa_kernel(SDPBackend.MATH):
        want = scaled_dot_product_attention(q.double(), k.double(), v.double()).to(dtype)
    largest = float(v.abs().max())
    torch.testing.assert_close(attend(q, k, v), want, rtol=0, atol=rounding * largest)
    q.requires_grad_()
    # in bfloat16 the products of a graph are rounded before their softmax
    graph_rounding = 4 * rounding if dtype == torch.bfloat16 else rounding
    torch.testing.assert_close(attend(q, k, v), want, rtol=0, atol=graph_rounding * largest)
