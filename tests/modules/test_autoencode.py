"""Training of autoencoders: the loss by hand, the measured scale, the file that is left."""

import latent
import pytest
import tiny
import torch
from torch import nn

from robustguide.callbacks import EMA
from robustguide.checkpoints import load_codec
from robustguide.codecs import PixelCodec
from robustguide.data import ENCODING, Images
from robustguide.modules import Autoencoding
from robustguide.samplers import SeededNoise
from robustguide.samplers.seeds import mixed


def module(**arguments):
    optimizer = lambda groups: torch.optim.AdamW(groups, lr=0.01)  # noqa: E731
    return Autoencoding(latent.codec(), **{"optimizer": optimizer} | arguments)


def by_hand(codec, images, noise, kl_weight, error):
    """The loss, from the distribution of the library."""
    found = codec.autoencoder.net.encode(images).latent_dist
    decoded = codec.autoencoder.net.decode(found.mean + found.std * noise).sample
    divergence = found.kl().sum() / images.numel()
    return error(decoded - images) + kl_weight * divergence


@pytest.mark.parametrize(
    ("error", "mean"),
    [(None, lambda d: d.abs().mean()), (nn.MSELoss(), lambda d: d.square().mean())],
)
def test_the_loss_is_error_and_divergence(error, mean, tmp_path):
    made = module(error=error, kl_weight=0.3, seed=4)
    before = latent.codec()
    trainer = tiny.trainer(tmp_path, limit_val_batches=0)
    trainer.fit(made, datamodule=Images(batch_size=16))
    images, *_ = next(iter(Images(batch_size=16).train_dataloader()))
    torch.manual_seed(mixed(4, 0, 0))
    expected = by_hand(before, images, torch.randn(16, *latent.LATENTS), 0.3, mean)
    torch.testing.assert_close(trainer.callback_metrics["train/loss"], expected)


def test_validation_is_one_number_for_any_batch_size(tmp_path):
    made, found = module(kl_weight=0.1), []
    for size in (60, 7):
        data = Images(eval_batch_size=size, eval_limit=60)
        trainer = tiny.trainer(tmp_path)
        found.append(trainer.validate(made, datamodule=data, verbose=False)[0]["val/loss"])
    images, _, index = next(iter(data.val_dataloader()))
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    noise = SeededNoise(index.tolist(), ENCODING).draw(latent.LATENTS)
    parts = made.loss(images, made.codec.moments(images), noise)
    expected = by_hand(latent.codec(), images, noise, 0.1, lambda d: d.abs().mean())
    torch.testing.assert_close(parts[0], expected)
    torch.testing.assert_close(parts[0], parts[1] + 0.1 * parts[2])


@pytest.mark.parametrize("latent_std", [0.5, 1.0])
def test_latents_are_scaled_after_training(latent_std, tmp_path):
    """Drawn latents of the validation images have mean 0 and the standard deviation asked for."""
    made, data = module(latent_std=latent_std), Images(batch_size=64, eval_limit=100)
    trainer = tiny.trainer(tmp_path, EMA(0.5), max_steps=5)
    trainer.fit(made, datamodule=data)
    codec = made.codec.eval()
    assert not torch.equal(codec.scale, latent.codec().scale)
    images = torch.cat([images for images, *_ in data.val_dataloader()]).repeat(40, 1, 1, 1)
    noise = latent.noise(len(images), *latent.LATENTS)
    with torch.no_grad():
        x_0 = codec.encode(images, noise)
    std, mean = torch.std_mean(x_0, (0, 2, 3), correction=0)
    torch.testing.assert_close(mean, torch.zeros(2), rtol=0, atol=0.01)
    torch.testing.assert_close(std, torch.full((2,), latent_std), rtol=0.02, atol=0)
    assert len(images) == 4000


def test_training_lowers_the_loss_and_leaves_a_codec(tmp_path):
    """Through the command line, with a moving average; the file holds the average."""
    model = tiny.spec(
        "modules.Autoencoding", codec=latent.codec_spec(), kl_weight=1e-4, optimizer=tiny.adamw()
    )
    ema = {"class_path": "robustguide.callbacks.EMA", "init_args": {"decay": 0.8}}
    changes = {"model": model, "trainer": {"max_steps": 60, "callbacks": [ema]}}
    changes["trainer"]["val_check_interval"] = 60
    cli = tiny.run(tmp_path / "run", "fit", tiny.merged(tiny.TRAINING, changes))
    codec = load_codec(str(tmp_path / "run" / "codec.safetensors"))
    assert codec.metadata.weights == "ema" and codec.metadata.shape == (1, 8, 8)
    assert codec.metadata.class_names == () and codec.metadata.extra == {"steps": 60}
    assert codec.scale.tolist() != [1, 1] and codec.shift.tolist() != [0, 0]
    for name, value in cli.model.codec.state_dict().items():
        assert torch.equal(codec.state_dict()[name], value)
    images, *_ = next(iter(Images(eval_limit=60).test_dataloader()))
    error = (codec.decode(codec.encode(images)) - images).abs().mean()
    plain = (images.mean(0) - images).abs().mean()
    assert error < 0.85 * plain
    model = {"class_path": "robustguide.checkpoints.load_codec"}
    model["init_args"] = {"path": str(tmp_path / "run" / "codec.safetensors")}
    again = tiny.merged(tiny.TRAINING, changes, {"model": {"init_args": {"codec": model}}})
    again["trainer"]["max_steps"] = 1
    cli = tiny.run(tmp_path / "again", "fit", again)
    assert all(p.requires_grad for p in cli.model.codec.parameters())
    assert load_codec(str(tmp_path / "again" / "codec.safetensors")).metadata.kind == "codec"


def test_what_cannot_be_trained(tmp_path):
    with pytest.raises(ValueError, match=r"nothing to train in a PixelCodec; name a .*KLCodec"):
        Autoencoding(PixelCodec())
    for arguments in ({"kl_weight": -1.0}, {"latent_std": 0.0}, {"kl_weight": float("nan")}):
        with pytest.raises(ValueError, match="kl_weight must be 0 or more and latent_std above 0"):
            module(**arguments)
    with pytest.raises(ValueError, match="measured on the validation images of a data module"):
        loader = [tiny.batch()]
        tiny.trainer(tmp_path).fit(module(), train_dataloaders=loader, val_dataloaders=loader)
    made = Autoencoding(latent.codec())
    made.codec.image_channels = 3
    with pytest.raises(ValueError, match=r"reads images of 3 channels"):
        tiny.trainer(tmp_path).fit(made, datamodule=Images(batch_size=8))
