"""Networks with the one convention, `(x, sigma, y) -> denoised`."""

from robustguide.denoisers.edm import EDMDenoiser
from robustguide.denoisers.eps import EpsDenoiser
from robustguide.denoisers.wrappers import Unconditional

__all__ = ["EDMDenoiser", "EpsDenoiser", "Unconditional"]
