"""The codec of pixels is the identity, and its bytes are those that EDM2's denoisers see."""

import torch
from golden_files import load

from robustguide.codecs import PixelCodec
from robustguide.interfaces import from_pixels


def test_bytes_are_the_recorded_ones():
    _, tensors = load("edm2_blocks")
    codec = PixelCodec()
    encoded = codec.encode(from_pixels(tensors["in.rgb_pixels"]))
    assert torch.equal(encoded, tensors["out.rgb_encode"])
    decoded = codec.to_bytes(codec.decode(tensors["in.rgb_latents"]))
    assert torch.equal(decoded, tensors["out.rgb_decode"])


def test_there_and_back_is_nowhere():
    images = torch.rand(2, 1, 4, 4) * 2 - 1
    codec = PixelCodec(channels=1)
    assert torch.equal(codec.decode(codec.encode(images, torch.ones_like(images))), images)
    assert codec.latent_shape((1, 7, 9)) == (1, 7, 9)
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(codec.to_bytes(from_pixels(pixels)), pixels)
