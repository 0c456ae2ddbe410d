"""The diffusion transformer against recorded numbers, published names, and its own library."""

import copy
import sys

import pytest
import torch
from golden_files import listing, load, tolerance, weights
from torch.testing import assert_close

from robustguide.checkpoints.keys_dit import to_official, to_ours
from robustguide.nets import DiT

diffusers = pytest.importorskip("diffusers")

TINY = dict(size=4, patch=2, channels=3, hidden=16, depth=2, heads=2, num_classes=5)
SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}


def recorded():
    description, tensors = load("dit_a")
    net = DiT(size=8, patch=2, channels=4, hidden=32, depth=2, heads=4, num_classes=10).eval()
    net.load_state_dict(to_ours(weights(tensors), prefix=""), strict=True)
    return description, tensors, net


def randomised(**changes):
    """Without the zeros of a new network, which would hide what comes before them."""
    net = DiT(**(TINY | changes)).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        parameter.data.normal_(std=0.2, generator=generator)
    return net


def inputs(net, batch=3):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, net.channels, net.size, net.size, generator=generator)
    return x, torch.linspace(1, 998, batch), torch.arange(batch)


def test_recorded_predictions_and_gradient():
    description, tensors, net = recorded()
    x, t, y = tensors["in.x"].requires_grad_(), tensors["in.t"], tensors["in.y"]
    out = net(x, t, y)
    (gradient,) = torch.autograd.grad((out * tensors["in.grad_out"]).sum(), x)
    null = net(x, t, torch.full_like(y, 10))
    dropped = torch.where(tensors["in.force_drop_ids"] == 1, 10, y)
    found = {
        "out.y": out,
        "out.grad_x": gradient,
        "out.y_null": null,
        "out.y_force_drop_embedding": net.labels(dropped),
    }
    for key, got in found.items():
        assert_close(got, tensors[key], **tolerance(description, key))


def test_training_mode_drops_no_labels():
    """Dropping them is the training's affair; the blocks of the library would do it by chance."""
    _, tensors, net = recorded()
    x, t, y = (tensors[f"in.{name}"] for name in ("x", "t", "y"))
    want = net(x, t, y)
    net.train()
    for _ in range(20):
        assert_close(net(x, t, y), want, rtol=0, atol=0)


@pytest.mark.parametrize(
    "name", ["dit_s_2_256", "dit_b_2_256", "dit_l_2_256", "dit_xl_2_256", "dit_xl_2_512"]
)
def test_names_and_shapes_are_those_of_the_public_checkpoint(name):
    flags, shapes = listing(name)
    size, (hidden, depth, heads) = int(flags.split()[3]) // 8, SIZES[flags.split()[1][4:-2]]
    with torch.device("meta"):
        net = DiT(size=size, hidden=hidden, depth=depth, heads=heads)
    official = to_official(net.state_dict(), prefix="")
    assert {key: tuple(value.shape) for key, value in official.items()} == shapes
    own = sum(p.numel() for p in net.parameters())
    positions = size**2 // 4 * hidden
    assert own + positions == sum(torch.Size(shape).numel() for shape in shapes.values())


def test_embeddings_are_held_once():
    """Also by the optimizer: no block has any of its own."""
    names = [name for name, _ in DiT(**TINY).named_parameters()]
    assert len(names) == len(set(names)) == 2 * (2 * 7 + 5) + 1  # two blocks, five layers, a table
    assert not any("emb." in name for name in names)


def test_the_blocks_are_the_librarys():
    """Given its frequencies of t and its embedding in every block, the model of `diffusers`."""
    net = randomised()
    theirs = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=3,
        out_channels=6,
        num_layers=2,
        sample_size=4,
        num_embeds_ada_norm=5,
        norm_eps=1e-6,
    ).eval()
    theirs.load_state_dict(net.transformer.state_dict(), strict=False)
    for block in theirs.transformer_blocks:
        embedding = block.norm1.emb
        embedding.time_proj.downscale_freq_shift = 0
        embedding.class_embedder.embedding_table.load_state_dict(net.labels.state_dict())
        embedding.timestep_embedder.linear_1.load_state_dict(net.time[0].state_dict())
        embedding.timestep_embedder.linear_2.load_state_dict(net.time[2].state_dict())
    x, t, y = inputs(net)
    want = theirs(x, timestep=t, class_labels=y).sample
    assert_close(net(x, t, y), want, rtol=1e-5, atol=1e-5)


def test_a_new_network_is_that_of_the_paper():
    """Blocks start as the identity and the output as zero, so no gradient passes them yet."""
    torch.manual_seed(0)
    net = DiT(**(TINY | dict(hidden=64)))
    x, t, y = inputs(net)
    assert net(x, t, y).eq(0).all()
    tokens = net.transformer.pos_embed(x)
    for block in net.transformer.transformer_blocks:
        assert_close(block(tokens, timestep=torch.ones(3, 64)), tokens, rtol=0, atol=0)
    block = net.transformer.transformer_blocks[0]
    for layer in (net.labels, net.time[0], net.time[2]):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.15)
    for layer in (block.attn1.to_q, block.ff.net[0].proj, net.transformer.pos_embed.proj):
        rows, columns = layer.weight.flatten(1).shape
        bound = (6 / (rows + columns)) ** 0.5
        assert 0.9 * bound < layer.weight.abs().max() <= bound
        assert layer.bias.eq(0).all()


def test_all_parameters_of_a_small_network_learn():
    net = randomised()
    net(*inputs(net)).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_images_of_a_batch_do_not_mix():
    net = randomised(learn_sigma=False)
    x, t, y = inputs(net)
    out = net(x, t, y)
    assert out.shape == x.shape
    assert_close(net(x[1:2], t[1:2], y[1:2]), out[1:2])
    assert (net(x, t + 0.5, y) - out).abs().amax() > 1e-4  # between integers, too
    assert (net(x, t, y + 1) - out).abs().amax() > 1e-4


@pytest.mark.parametrize("patch", [1, 4])
def test_other_patches(patch):
    net = randomised(patch=patch, size=8)
    assert net(*inputs(net)).shape == (3, 6, 8, 8)
    assert net.transformer.pos_embed.pos_embed.shape[1] == (8 // patch) ** 2


def test_without_classes():
    net = randomised(num_classes=0)
    x, t, y = inputs(net)
    with_table = randomised(num_classes=0)
    with_table.num_classes = 1
    assert_close(net(x, t), with_table(x, t, torch.zeros_like(y)), rtol=0, atol=0)
    with pytest.raises(ValueError, match="num_classes=0 and called with labels"):
        net(x, t, y)
    with pytest.raises(ValueError, match="num_classes=1 and called without labels"):
        with_table(x, t)


def test_recomputed_blocks_leave_all_gradients_unchanged():
    net = randomised()
    recomputing = DiT(**TINY, use_checkpoint=True)
    recomputing.load_state_dict(net.state_dict())
    found = []
    for each in (net, recomputing):
        x, t, y = inputs(each)
        x.requires_grad_()
        out = each(x, t, y).square().sum()
        found.append(torch.autograd.grad(out, [x, *each.parameters()]))
    assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)


def test_frozen_network_passes_a_gradient():
    net = randomised().requires_grad_(False)
    x, t, y = inputs(net)
    (gradient,) = torch.autograd.grad(net(x.requires_grad_(), t, y).sum(), x)
    assert gradient.abs().amax() > 0


def test_copies_are_independent():
    """As those of an exponential moving average are."""
    net = randomised()
    x, t, y = inputs(net)
    want, twin = net(x, t, y), copy.deepcopy(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    assert_close(twin(x, t, y), want, rtol=0, atol=0)


def test_half_precision_and_autocast():
    _, tensors, net = recorded()
    x, t, y = (tensors[f"in.{name}"] for name in ("x", "t", "y"))
    want = net(x, t, y)
    with torch.autocast("cpu", torch.bfloat16):
        got = net(x, t, y)
    assert (got.float() - want).norm() < 0.05 * want.norm()
    got = net.bfloat16()(x.bfloat16(), t, y)
    assert got.dtype == torch.bfloat16
    assert (got.float() - want).norm() < 0.05 * want.norm()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(size=5), "size=5 is not a multiple of patch=2"),
        (dict(heads=3), "hidden=16 is not a multiple of heads=3"),
        (dict(hidden=18, heads=1), "hidden=18 is not a multiple of 4"),
        (dict(patch=0), "patch=0"),
    ],
)
def test_sizes_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        DiT(**(TINY | changes))


def test_inputs_that_do_not_fit():
    net = DiT(**TINY)
    x, t, y = inputs(net)
    with pytest.raises(ValueError, match=r"shape \[3, 4, 4\], got \[3, 8, 8\]"):
        net(x.repeat(1, 1, 2, 2), t, y)


def test_the_extra_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"diffusers.*pip install 'robustguide\[latent\]'"):
        DiT(**TINY)
