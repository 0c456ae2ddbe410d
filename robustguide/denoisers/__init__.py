"""Networks with the one convention, `(x, sigma, y) -> denoised`."""

from robustguide.denoisers.edm import EDMDenoiser, VEDenoiser
from robustguide.denoisers.edm2 import EDM2Denoiser
from robustguide.denoisers.eps import EpsDenoiser
from robustguide.denoisers.scale_input import ScaleInput, at_scale
from robustguide.denoisers.text import load_text_to_image, published_grid
from robustguide.denoisers.upsampling import Upsampler
from robustguide.denoisers.velocity import VDenoiser
from robustguide.denoisers.wrappers import Unconditional

__all__ = [
    "EDM2Denoiser",
    "EDMDenoiser",
    "EpsDenoiser",
    "ScaleInput",
    "Unconditional",
    "Upsampler",
    "VDenoiser",
    "VEDenoiser",
    "at_scale",
    "load_text_to_image",
    "published_grid",
]
