"""Architectures, with parameters named as in public checkpoints; they know nothing of sigma."""

from robustguide.nets.adm import EncoderUNet, SuperResUNet, UNet
from robustguide.nets.dit import DiT
from robustguide.nets.edm import DhariwalUNet, SongUNet
from robustguide.nets.edm2 import EDM2UNet
from robustguide.nets.inception import FIDInception
from robustguide.nets.mlp import MLP
from robustguide.nets.resnet_cifar import CifarResNet

__all__ = [
    "MLP",
    "CifarResNet",
    "DhariwalUNet",
    "DiT",
    "EDM2UNet",
    "EncoderUNet",
    "FIDInception",
    "SongUNet",
    "SuperResUNet",
    "UNet",
]
