"""The recorded networks of EDM, each behind its preconditioning, and the recorded labels."""

import torch
from golden_files import load, weights

from robustguide.denoisers import EDMDenoiser, EpsDenoiser, VEDenoiser
from robustguide.nets import DhariwalUNet, SongUNet
from robustguide.noise import ContinuousLevels, cosine_levels

NETWORKS = [
    "edm_dhariwal",
    "edm_dhariwal_multihead",
    "edm_iddpm_dhariwal",
    "edm_song_ddpmpp",
    "edm_ve_song_ncsnpp",
    "edm_vp_song_ddpmpp",
]


def network(name):
    """A recorded network with its weights, all of which must find their place."""
    description, tensors = load(name)
    arguments = dict(description["constructor"])
    kind, channels = arguments.pop("model_type"), arguments.pop("img_channels")
    if kind == "DhariwalUNet":
        arguments["channels_per_head"] = description["channels_per_head"]
    out_channels = channels * (2 if description["precond"] == "iDDPMPrecond" else 1)
    classes = {"DhariwalUNet": DhariwalUNet, "SongUNet": SongUNet}
    net = classes[kind](in_channels=channels, out_channels=out_channels, **arguments)
    net.load_state_dict(weights(tensors, "model.model."), strict=True)
    return description, tensors, net.eval()


def denoiser(name, net=None):
    """A recorded network, or another in its place, as a denoiser."""
    description, tensors, recorded = network(name)
    net, constructor = net or recorded, description["constructor"]
    size = constructor["img_resolution"]
    known = constructor["label_dim"], (constructor["img_channels"], size, size)
    match description["precond"]:
        case "EDMPrecond":
            denoiser = EDMDenoiser(net, *known)
        case "VEPrecond":
            denoiser = VEDenoiser(net, *known)
        case "VPPrecond":
            denoiser = EpsDenoiser(net, ContinuousLevels(), *known)
        case "iDDPMPrecond":
            denoiser = EpsDenoiser(net, cosine_levels(), *known, learns_variance=True)
    return description, tensors, denoiser.eval()


def labels(tensors, key="in.labels_onehot", count=3):
    """Recorded labels as indices; zeros where the network knows no classes."""
    if key in tensors:
        return tensors[key].argmax(1)
    return torch.zeros(count, dtype=torch.long)
