"""`robustguide encode`, through the door of the command line."""

import latent
import pytest
import torch
from rich.console import Console

from robustguide.checkpoints import export, load_codec
from robustguide.codecs import KLCodec
from robustguide.commands import encode
from robustguide.data import DataError, Digits, LatentShards, Manifest, fingerprint

SOURCE = ["--source=robustguide.data.Digits", "--source.fold=[0, 20]"]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("codec") / "codec.safetensors"
    described = latent.codec_spec(scale=latent.SCALE, shift=latent.SHIFT)
    export(latent.codec(), path, described, class_names=(), shape=(1, 8, 8), weights="raw")
    return str(path)


def test_a_file_encodes_a_set(file, tmp_path, capsys):
    words = [f"--codec={file}", *SOURCE, f"--folder={tmp_path}", "--dtype=float32", "--device=cpu"]
    assert encode.run(words) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line == f"{tmp_path}: latents [2, 4, 4] of 63 train, 179 validation, 359 test images"
    found, codec = Manifest.read(tmp_path), latent.codec()
    assert found.encoding.fingerprint == fingerprint(codec) and found.encoding.mirrored
    assert "'fold': (0, 20)" in found.recipe
    moments = LatentShards(str(tmp_path)).split("test")
    image = Digits().split("test")[0][0]
    noise = torch.randn(latent.LATENTS, generator=torch.Generator())
    assert moments[0][0].shape == noise.shape
    kept, _ = moments._open(moments.shards[0])
    torch.testing.assert_close(kept[0][0], codec.moments(image[None])[0])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    assert encode.run(words) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    with pytest.raises(DataError, match="another codec, source or settings"):
        encode.run([*words, "--source.fold=[1, 20]"])


def test_a_codec_is_named_by_its_class(tmp_path):
    path = latent.folder(tmp_path / "vae", latent_channels=4)
    from safetensors.torch import save_file

    tensors = latent.autoencoder(latent_channels=4).net.state_dict()
    save_file(tensors, tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    words = ["--codec=robustguide.codecs.EDM2Codec", "--codec.chunk=32"]
    words += ["--codec.autoencoder=robustguide.checkpoints.load_autoencoder"]
    words += [f"--codec.autoencoder.path={path}", *SOURCE, "--mirrored=false", "--per_shard=100"]
    assert encode.run([*words, f"--folder={tmp_path / 'latents'}"]) == 0
    manifest = Manifest.read(tmp_path / "latents")
    assert manifest.encoding.codec == "EDM2Codec" and not manifest.encoding.mirrored
    assert manifest.encoding.dtype == "float16" and manifest.shape == (4, 4, 4)
    assert [shard.count for shard in manifest.shards["validation"]] == [100, 79]
    codec = KLCodec(latent.autoencoder(latent_channels=4))
    assert manifest.encoding.fingerprint != fingerprint(codec)


def test_a_codec_is_named_by_its_card(tmp_path):
    words = ["--codec=card:fashion-mnist-autoencoder", *SOURCE, f"--folder={tmp_path}"]
    assert encode.run(words) == 0
    manifest = Manifest.read(tmp_path)
    assert manifest.shape == (4, 2, 2)
    codec = load_codec(card="fashion-mnist-autoencoder")
    assert manifest.encoding.fingerprint == fingerprint(codec)
    with pytest.raises(ValueError, match="holds a denoiser, but a codec was asked for"):
        encode.run(["--codec=card:fashion-mnist-latent-dit", *words[1:]])


def test_a_terminal_sees_a_bar(file, tmp_path, monkeypatch):
    consoles = []

    def console():
        consoles.append(Console(force_terminal=True, record=True, width=100))
        return consoles[-1]

    monkeypatch.setattr(encode, "Console", console)
    encode.run([f"--codec={file}", *SOURCE, f"--folder={tmp_path}"])
    assert "601/601" in consoles[0].export_text()


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as stopped:
        encode.run(["--help"])
    shown = capsys.readouterr().out
    assert not stopped.value.code and "robustguide encode --codec" in shown
    assert "--source robustguide.data.FashionMNIST --source.size 32" in shown


def test_pixels_are_no_latents(tmp_path):
    words = ["--codec=robustguide.codecs.PixelCodec", "--codec.channels=1", *SOURCE]
    with pytest.raises(ValueError, match="A PixelCodec makes no latents; give a"):
        encode.run([*words, f"--folder={tmp_path}"])
