"""Trained networks as files that carry no code, and the judge of what such a file may name."""

from robustguide.checkpoints.autoencoders import load_autoencoder
from robustguide.checkpoints.description import describe
from robustguide.checkpoints.export import export, verify
from robustguide.checkpoints.load import load_classifier, load_codec, load_denoiser, load_weights
from robustguide.checkpoints.metadata import Metadata, read_metadata, sha256_of
from robustguide.checkpoints.off_the_shelf import (
    clip_classifier,
    timm_classifier,
    torchvision_classifier,
    with_weights,
)
from robustguide.checkpoints.portable import portable
from robustguide.checkpoints.robustness import load_robustness
from robustguide.checkpoints.trust import UntrustedError, build, check, trusting

__all__ = [
    "Metadata",
    "UntrustedError",
    "build",
    "check",
    "clip_classifier",
    "describe",
    "export",
    "load_autoencoder",
    "load_classifier",
    "load_codec",
    "load_denoiser",
    "load_robustness",
    "load_weights",
    "portable",
    "read_metadata",
    "sha256_of",
    "timm_classifier",
    "torchvision_classifier",
    "trusting",
    "verify",
    "with_weights",
]
