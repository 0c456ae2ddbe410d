"""Trained networks as files that carry no code, and the judge of what such a file may name."""

from robustguide.checkpoints.export import export, verify
from robustguide.checkpoints.load import load_classifier, load_denoiser, load_weights
from robustguide.checkpoints.metadata import Metadata, read_metadata, sha256_of
from robustguide.checkpoints.portable import portable
from robustguide.checkpoints.specification import Specification
from robustguide.checkpoints.trust import UntrustedError, build, check, trusting

__all__ = [
    "Metadata",
    "Specification",
    "UntrustedError",
    "build",
    "check",
    "export",
    "load_classifier",
    "load_denoiser",
    "load_weights",
    "portable",
    "read_metadata",
    "sha256_of",
    "trusting",
    "verify",
]
