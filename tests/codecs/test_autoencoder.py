"""The wrapper of the library's autoencoder."""

import builtins

import latent
import pytest
import torch
from torch.nn import functional as F

from robustguide.codecs import KLAutoencoder


def test_the_default_is_the_autoencoder_of_stable_diffusion():
    """Its published number of parameters, and its names as the library has them."""
    with torch.device("meta"):
        autoencoder = KLAutoencoder()
    assert sum(p.numel() for p in autoencoder.parameters()) == 83_653_863
    assert autoencoder.factor == 8
    names = set(autoencoder.net.state_dict())
    assert len(names) == 248
    assert {"encoder.conv_in.weight", "post_quant_conv.bias", "decoder.conv_out.bias"} <= names


def test_moments_are_mean_and_standard_deviation():
    autoencoder, images = latent.autoencoder(), latent.images()
    hidden = autoencoder.net.encoder(images)
    mean, log_variance = autoencoder.net.quant_conv(hidden).chunk(2, dim=1)
    expected = torch.cat([mean, (log_variance.clamp(-30, 20) / 2).exp()], dim=1)
    torch.testing.assert_close(autoencoder.moments(images), expected)


@pytest.mark.parametrize(
    "changes",
    [
        {"use_quant_conv": False, "use_post_quant_conv": False},
        {"mid_block_add_attention": False},
        {"layers_per_block": 2, "block_out_channels": [4, 4, 8], "latent_channels": 3},
    ],
)
def test_other_sizes_train(changes):
    autoencoder = latent.autoencoder(**changes)
    images = latent.images()
    moments = autoencoder.moments(images)
    d, factor = autoencoder.latent_channels, autoencoder.factor
    assert moments.shape == (5, 2 * d, 8 // factor, 8 // factor)
    decoded = autoencoder.decode(moments[:, :d])
    assert decoded.shape == images.shape
    F.mse_loss(decoded, images).backward()
    silent = [
        name
        for name, p in autoencoder.named_parameters()
        if p.grad is None or not p.grad.abs().sum() > 0
    ]
    # of the standard deviations, which were not drawn from
    assert all("quant_conv" in name or "to_k.bias" in name for name in silent)


def test_widths_that_the_groups_do_not_divide():
    with pytest.raises(ValueError, match=r"block_out_channels=\[4, 6\] must be multiples of norm"):
        KLAutoencoder(1, 2, [4, 6], norm_num_groups=4)


def test_the_library_is_an_extra(monkeypatch):
    found = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "diffusers":
            raise ImportError("No module named 'diffusers'")
        return found(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'robustguide\[latent\]'"):
        KLAutoencoder(**latent.SMALL)
