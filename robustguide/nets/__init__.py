"""Architectures, with parameters named as in public checkpoints; they know nothing of sigma."""

from robustguide.nets.adm import EncoderUNet, SuperResUNet, UNet
from robustguide.nets.mlp import MLP

__all__ = ["MLP", "EncoderUNet", "SuperResUNet", "UNet"]
