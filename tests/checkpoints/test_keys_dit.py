"""Names of the tensors of a diffusion transformer."""

import pytest
import torch
from golden_files import load, weights
from safetensors.torch import load_file, save_file

from robustguide.checkpoints.keys_dit import from_diffusers, to_official, to_ours
from robustguide.nets import DiT

diffusers = pytest.importorskip("diffusers")


@pytest.fixture
def official():
    return weights(load("dit_a")[1])


def equal(got, want):
    return set(got) == set(want) and all(torch.equal(got[name], want[name]) for name in want)


@pytest.mark.parametrize("prefix", [{}, {"prefix": ""}])
def test_there_and_back(official, prefix, tmp_path):
    """Bit for bit, also by way of a file."""
    ours = to_ours(official, **prefix)
    assert (
        len(ours) == len(official) + 2 * 2 * 2
    )  # two blocks, a weight and a bias, two parts more
    save_file(ours, tmp_path / "ours.safetensors")
    assert equal(to_official(load_file(tmp_path / "ours.safetensors"), **prefix), official)


def test_the_network_of_a_denoiser_is_below_net(official):
    ours = to_ours(official)
    assert all(name.startswith("net.") for name in ours)
    bare = to_ours(official, prefix="")
    assert equal({name.removeprefix("net."): tensor for name, tensor in ours.items()}, bare)


def test_half_precision_stays(official):
    half = {name: tensor.half() for name, tensor in official.items()}
    assert equal(to_official(to_ours(half)), half)
    assert {tensor.dtype for tensor in to_ours(half).values()} == {torch.float16}


def test_parts_are_views(official):
    """A file mapped from the disk is not read for the sake of names."""
    stack = official["blocks.1.attn.qkv.weight"]
    value = to_ours(official)["net.transformer.transformer_blocks.1.attn1.to_v.weight"]
    assert value.untyped_storage().data_ptr() == stack.untyped_storage().data_ptr()
    assert torch.equal(value, stack[64:])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.pop("pos_embed"), r"1 missing \(pos_embed\)"),
        (lambda s: s.pop("blocks.1.mlp.fc2.bias"), r"1 missing \(blocks.1.mlp.fc2.bias\)"),
        (lambda s: s.update(extra=torch.ones(1)), r"1 unknown \(extra\)"),
        (
            lambda s: s.update({f"blocks.9{'9' * 5000}.attn.proj.weight": torch.ones(1)}),
            r"10 missing .*blocks.2.*and 1 unknown",
        ),
        (lambda s: s.clear(), "12 missing"),
        (lambda s: s.update({"blocks.0.attn.qkv.bias": torch.ones(95)}), "shape .95."),
        (lambda s: s.update({"blocks.0.attn.qkv.bias": torch.ones(())}), r"shape \[\]"),
    ],
)
def test_other_tensors_are_refused(official, spoil, message):
    spoil(official)
    with pytest.raises(ValueError, match=message):
        to_ours(official)


def test_the_file_of_a_training_script_is_told_from_its_network(official):
    with pytest.raises(ValueError, match=r"unknown \(ema, model, opt\).*its part 'ema'"):
        to_ours(dict.fromkeys(("model", "ema", "opt"), torch.ones(1)))


def test_incomplete_networks_of_ours_are_refused(official):
    ours = to_ours(official)
    ours.pop("net.labels.weight")
    with pytest.raises(ValueError, match=r"DiT of this package: 1 missing \(net.labels.weight\)"):
        to_official(ours)


@pytest.fixture
def repeated(official):
    """The same network as `diffusers` writes it: no positions, embeddings in every block."""
    theirs = diffusers.DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        num_embeds_ada_norm=10,
    ).state_dict()
    ours = to_ours(official, prefix="transformer.")
    times = {"timestep_embedder.linear_1": "time.0", "timestep_embedder.linear_2": "time.2"}
    for name in theirs:
        _, _, leaf = name.partition(".norm1.emb.")
        for there, here in {**times, "class_embedder.embedding_table": "labels"}.items():
            leaf = leaf.replace(there, here)
        theirs[name] = ours[f"transformer.{leaf or 'transformer.' + name}"]
    return theirs


def test_folder_of_diffusers(official, repeated):
    net = DiT(size=8, patch=2, channels=4, hidden=32, depth=2, heads=4, num_classes=10)
    ours = from_diffusers(repeated, net.transformer.pos_embed.pos_embed, prefix="")
    assert equal(ours, to_ours(official, prefix=""))
    net.load_state_dict(ours, strict=True)


def test_blocks_that_embed_otherwise_are_refused(official, repeated):
    name = "transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight"
    repeated[name] = repeated[name] + 1
    with pytest.raises(ValueError, match=f"{name} differs from that of the first block"):
        from_diffusers(repeated, official["pos_embed"])


def test_a_folder_of_another_network_is_refused(official, repeated):
    repeated.pop("proj_out_1.bias")
    with pytest.raises(ValueError, match=r"DiT of diffusers: 1 missing \(proj_out_1.bias\)"):
        from_diffusers(repeated, official["pos_embed"])
