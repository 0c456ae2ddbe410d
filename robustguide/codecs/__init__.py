"""What lies between images and the space that a denoiser works in."""

from robustguide.codecs.autoencoder import KLAutoencoder
from robustguide.codecs.kl import EDM2Codec, KLCodec, StableDiffusionCodec, sampled
from robustguide.codecs.pixels import PixelCodec

__all__ = [
    "EDM2Codec",
    "KLAutoencoder",
    "KLCodec",
    "PixelCodec",
    "StableDiffusionCodec",
    "sampled",
]
