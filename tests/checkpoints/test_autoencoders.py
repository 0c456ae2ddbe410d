"""Autoencoders from folders in the layout of diffusers, and codecs from files of ours."""

import json
from dataclasses import replace

import latent
import pytest
import torch
from safetensors.torch import load_file, save_file

from robustguide.cards import cards
from robustguide.checkpoints import build, export, load_autoencoder, load_codec, portable
from robustguide.checkpoints.autoencoders import describe_folder
from robustguide.checkpoints.convert import convert
from robustguide.codecs import EDM2Codec, KLAutoencoder, KLCodec, StableDiffusionCodec
from robustguide.data import fingerprint

LOADER = "robustguide.checkpoints.load_autoencoder"


@pytest.mark.parametrize("is_old", [False, True])
def test_a_folder_is_read_as_the_library_reads_it(tmp_path, is_old):
    from diffusers import AutoencoderKL

    path = latent.folder(tmp_path / "sd-vae", is_old=is_old)
    theirs = AutoencoderKL.from_pretrained(path, local_files_only=True).eval()
    codec, images = load_codec(path), latent.images()
    assert type(codec) is StableDiffusionCodec
    assert codec.scale.tolist() == [pytest.approx(0.18215, abs=1e-8)] * 2
    with torch.no_grad():
        found = theirs.encode(images).latent_dist
        torch.testing.assert_close(codec.encode(images), found.mean * 0.18215)
        decoded = theirs.decode(found.mean).sample
        torch.testing.assert_close(codec.decode(found.mean * 0.18215), decoded)
    assert not codec.training and not any(p.requires_grad for p in codec.parameters())
    assert codec.metadata.kind == "codec" and codec.metadata.shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("name", "codec"), [("sd-vae-ft-mse", StableDiffusionCodec), ("edm2-vae", EDM2Codec)]
)
def test_the_file_alone_is_read_by_its_card(tmp_path, monkeypatch, name, codec):
    """At the scale of the card, which the file does not tell; the same as from the folder."""
    path = latent.folder(tmp_path / "vae", latent_channels=4)
    tensors = latent.autoencoder(latent_channels=4).net.state_dict()
    file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    save_file(tensors, file)
    of = cards()[name]
    arguments = describe_folder(path).specification["init_args"]["autoencoder"]["init_args"]
    autoencoder = of.specification["init_args"]["autoencoder"] | {"init_args": arguments}
    described = of.specification | {"init_args": {"autoencoder": autoencoder}}
    small = replace(of, specification=described, shape=(1, 8, 8), parameters=None)
    monkeypatch.setitem(cards(), name, small)
    read = load_codec(str(file), card=name)
    wanted, images = codec(load_autoencoder(path)), latent.images()
    assert type(read) is codec
    assert torch.equal(read.encode(images), wanted.encode(images))
    converted = convert(small, file, tmp_path / "codec.safetensors")
    assert torch.equal(load_codec(str(converted)).encode(images), wanted.encode(images))


def test_the_scale_of_the_config(tmp_path):
    path = latent.folder(tmp_path, scaling_factor=1.5, shift_factor=0.25)
    codec = load_codec(path)
    assert codec.scale.tolist() == [1.5, 1.5] and codec.shift.tolist() == [-0.375, -0.375]


def test_the_folder_of_a_whole_pipeline_and_half_precision(tmp_path):
    latent.folder(tmp_path / "vae", name="diffusion_pytorch_model.fp16.safetensors")
    found = load_autoencoder(str(tmp_path)).net.state_dict()
    for name, value in latent.autoencoder().net.state_dict().items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], value.half().float())


def test_the_same_autoencoder_at_edm2s_scale(tmp_path):
    path = latent.folder(tmp_path / "vae", latent_channels=4, scaling_factor=None)
    save_file(
        latent.autoencoder(latent_channels=4).net.state_dict(),
        tmp_path / "vae" / "diffusion_pytorch_model.safetensors",
    )
    codec = EDM2Codec(load_autoencoder(path))
    images = latent.images()
    raw = codec.autoencoder.net.encode((images + 1) / 2).latent_dist.mean
    torch.testing.assert_close(codec.raw(codec.encode(images)), raw, rtol=1e-4, atol=1e-5)


def test_an_exported_codec_comes_back(tmp_path):
    """With the measured scale, which its specification does not know."""
    codec, path = build(latent.codec_spec()), str(tmp_path / "codec.safetensors")
    codec.load_state_dict(latent.codec().state_dict())
    export(codec, path, latent.codec_spec(), class_names=(), shape=(1, 8, 8), weights="raw")
    found, images = load_codec(path), latent.images()
    assert type(found) is KLCodec and fingerprint(found) == fingerprint(latent.codec())
    assert torch.equal(found.encode(images), latent.codec().encode(images))
    assert found.scale.tolist() == torch.tensor(latent.SCALE).tolist()
    assert found.metadata.num_classes == 0 and found.metadata.class_names == ()
    with pytest.raises(ValueError, match="load_codec"):
        from robustguide import load_classifier

        load_classifier(path)


def test_a_specification_forgets_the_folder(tmp_path):
    """What is exported says what to build, and holds the tensors itself."""
    path = latent.folder(tmp_path / "vae", scaling_factor=0.5)
    autoencoder = {"class_path": LOADER, "init_args": {"path": path}}
    described = {
        "class_path": "robustguide.codecs.KLCodec",
        "init_args": {"autoencoder": autoencoder, "scale": 2.0},
    }
    built = build(portable(described))
    assert type(built.autoencoder) is KLAutoencoder and built.scale.tolist() == [2, 2]
    shapes = {name: value.shape for name, value in built.state_dict().items()}
    assert shapes == {name: value.shape for name, value in latent.codec().state_dict().items()}
    whole = {
        "class_path": "robustguide.checkpoints.load_codec",
        "init_args": {"path": path},
    }
    assert build(portable(whole)).scale.tolist() == [0.5, 0.5]


def test_folders_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no config.json in .*give the folder"):
        load_codec(str(tmp_path))
    path = latent.folder(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    weights.rename(tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"\.bin could carry code and is not read"):
        load_codec(path)
    tensors.pop("quant_conv.bias")
    save_file(tensors, weights)
    with pytest.raises(ValueError, match=r"do not fit its config.json: net.quant_conv.bias"):
        load_codec(path)
    weights.write_bytes(b"<html>")
    with pytest.raises(ValueError, match="it is a web page"):
        load_codec(path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"Cannot read .*config.json"):
        load_codec(path)


@pytest.mark.parametrize(
    "change",
    [
        {"_class_name": "AutoencoderDC"},
        {"down_block_types": ["AttnDownEncoderBlock2D", "DownEncoderBlock2D"]},
        {"latents_mean": [0.0, 0.0]},
    ],
)
def test_other_models_are_refused(tmp_path, change):
    path = latent.folder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(latent.CONFIG | change))
    with pytest.raises(ValueError, match="this reader knows AutoencoderKL of plain blocks"):
        load_codec(path)
