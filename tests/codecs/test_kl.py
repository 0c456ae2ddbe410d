"""The scales of latents, against the recorded ones, and what lies around an autoencoder."""

import latent
import pytest
import torch
from golden_files import load, tolerance
from torch import nn

from robustguide.codecs import EDM2Codec, KLAutoencoder, KLCodec, StableDiffusionCodec, sampled
from robustguide.interfaces import to_pixels


@pytest.fixture(scope="module")
def golden():
    return load("edm2_blocks")


class Echo(KLAutoencoder):
    """Stands in for an autoencoder of four channels: decodes to what it is given."""

    def __init__(self, raw=None):
        nn.Module.__init__(self)
        self.in_channels = self.latent_channels = 4
        self.factor = 1
        self.raw, self.seen = raw, []

    def moments(self, images):
        self.seen.append(images)
        return self.raw

    def decode(self, latents):
        self.seen.append(latents)
        return latents


def test_edm2_scales_latents_as_recorded(golden):
    description, tensors = golden
    codec, near = EDM2Codec(Echo()), tolerance(description, "out.vae_scale")
    assert torch.equal(codec.scale, tensors["out.vae_scale"])
    assert torch.equal(codec.shift, tensors["out.vae_bias"])
    x_0 = codec.sample(tensors["in.vae_raw"], tensors["in.vae_noise"])
    torch.testing.assert_close(x_0, tensors["out.vae_encode_latents"], **near)
    echo = codec.autoencoder
    images = codec.decode(tensors["in.vae_latents"])
    torch.testing.assert_close(echo.seen[0], tensors["out.vae_decoder_input"], **near)
    pixels = tensors["out.vae_pixels_if_decoder_were_identity"]
    assert torch.equal(codec.to_bytes(images), pixels)
    assert not torch.equal(to_pixels(images), pixels)  # which would round


def test_edm2_shows_the_autoencoder_images_between_0_and_1(golden):
    codec = EDM2Codec(Echo(golden[1]["in.vae_raw"][:1]))
    pixels = torch.arange(256.0).reshape(1, 4, 8, 8)
    codec.encode(pixels / 127.5 - 1)
    torch.testing.assert_close(codec.autoencoder.seen[0], pixels / 255)


def test_stable_diffusion_multiplies_by_one_number(golden):
    moments, noise = golden[1]["in.vae_raw"], golden[1]["in.vae_noise"]
    mean, std = moments.chunk(2, dim=1)
    codec = StableDiffusionCodec(Echo(moments))
    images = latent.images(2, (4, 5, 5))
    torch.testing.assert_close(codec.encode(images, noise), (mean + std * noise) * 0.18215)
    assert torch.equal(codec.autoencoder.seen[0], images)
    torch.testing.assert_close(codec.decode(codec.encode(images)), mean)
    shifted = StableDiffusionCodec(Echo(moments), scaling_factor=1.5305, shift_factor=0.0609)
    torch.testing.assert_close(shifted.encode(images), (mean - 0.0609) * 1.5305)
    torch.testing.assert_close(shifted.decode(shifted.encode(images)), mean)


def test_a_codec_is_the_library_and_a_scale():
    """`diffusers` itself on the same weights; its own draw for the same noise."""
    codec, images = latent.codec(), latent.images()
    found = codec.autoencoder.net.encode(images).latent_dist
    scale, shift = (torch.tensor(each)[:, None, None] for each in (latent.SCALE, latent.SHIFT))
    drawn = found.sample(torch.Generator().manual_seed(1))
    noise = torch.randn(drawn.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(codec.encode(images, noise), drawn * scale + shift)
    torch.testing.assert_close(codec.encode(images), found.mode() * scale + shift)
    x_0 = latent.noise(3, *latent.LATENTS)
    decoded = codec.autoencoder.net.decode((x_0 - shift) / scale).sample
    torch.testing.assert_close(codec.decode(x_0), decoded)


def test_moments_that_were_kept_give_the_same_latents():
    codec, images = latent.codec(), latent.images()
    noise = latent.noise(5, *latent.LATENTS)
    moments = codec.moments(images)
    assert moments.shape == (5, 4, 4, 4) and (moments[:, 2:] > 0).all()
    assert torch.equal(codec.sample(moments, noise), codec.encode(images, noise))
    row = sampled(moments[3], noise[3], codec.scale, codec.shift)
    assert torch.equal(row, codec.encode(images, noise)[3])
    half = codec.sample(moments.half(), noise)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, codec.encode(images, noise), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("chunk", [1, 2, 7])
def test_chunks_change_nothing(chunk):
    whole, parts = latent.codec(), latent.codec(chunk=chunk)
    images, x_0 = latent.images(), latent.noise(5, *latent.LATENTS)
    torch.testing.assert_close(parts.encode(images), whole.encode(images))
    grads = []
    for codec in (whole, parts):
        moving = x_0.clone().requires_grad_()
        decoded = codec.decode(moving)
        grads.append(torch.autograd.grad(decoded.square().sum(), moving)[0])
        torch.testing.assert_close(decoded, whole.decode(x_0))
    torch.testing.assert_close(*grads)


def test_the_gradient_of_decoding_is_the_decoder_s_over_the_scale():
    codec, x_0 = latent.codec(), latent.noise(3, *latent.LATENTS).requires_grad_()
    weights = latent.images(3)
    (grad,) = torch.autograd.grad((codec.decode(x_0) * weights).sum(), x_0)
    raw = codec.raw(x_0).detach().requires_grad_()
    decoded = codec.autoencoder.net.decode(raw).sample
    (direct,) = torch.autograd.grad((decoded * weights).sum(), raw)
    assert direct.abs().min() > 0
    torch.testing.assert_close(grad, direct / torch.tensor(latent.SCALE)[:, None, None])


def test_mixed_precision_leaves_the_codec_alone():
    codec, images = latent.codec(), latent.images()
    with torch.autocast("cpu", torch.bfloat16):
        x_0 = codec.encode(images)
        decoded = codec.decode(x_0.bfloat16().float())
    assert torch.equal(x_0, codec.encode(images)) and decoded.dtype == torch.float32


def test_shapes():
    codec = latent.codec()
    assert codec.latent_shape((1, 8, 12)) == (2, 4, 6)
    for shape in ((3, 8, 8), (1, 7, 8), (1, 8, 9)):
        with pytest.raises(ValueError, match=r"1 channels whose sides are multiples of 2, not of"):
            codec.latent_shape(shape)
    with torch.device("meta"):
        full = KLAutoencoder()
    assert StableDiffusionCodec(full).latent_shape((3, 256, 256)) == (4, 32, 32)
    assert EDM2Codec(full).latent_shape((3, 512, 512)) == (4, 64, 64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": [1.0, 2.0, 3.0]}, r"scale=\[1.0, 2.0, 3.0\] must be one number or 2"),
        ({"scale": 0.0}, r"no scale is 0"),
        ({"shift": [1.0]}, r"shift=\[1.0\] must be one number or 2"),
        ({"pixel_range": (1.0, 1.0)}, r"pixel_range is \(black, white\), got \(1.0, 1.0\)"),
        ({"chunk": 0}, r"chunk is a number of rows, 1 or more, got 0"),
    ],
)
def test_arguments_that_are_none(arguments, message):
    with pytest.raises(ValueError, match=message):
        KLCodec(latent.autoencoder(), **arguments)
