"""The command lines in the heads of configurations, and what they build on the meta device.

The checkpoints that a newcomer would have trained before are written, tiny, into an empty folder,
and published networks are built from their cards, without memory. Data sets are not there, so that
building cannot have read one.
"""

import json
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torchvision
import yaml
from safetensors.torch import save_file

from robustguide import main as command_line
from robustguide.cards import card
from robustguide.checkpoints import build, export
from robustguide.classifiers.clip import clip
from robustguide.codecs import KLAutoencoder
from robustguide.data import Encoding, Manifest
from robustguide.data.splits import SPLITS

ROOT = Path(__file__).parents[1]
FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("configs/**/*.yaml"))
# Each is a network, a weight and a number on top of edm2.yaml; some are built as commands as well.
PRESETS = [file for file in FILES if "/published/edm2_" in file]
SHAPES = {
    "imagenet": (1000, [3, 128, 128]),
    "cifar": (10, [3, 32, 32]),
    "fashion": (10, [1, 32, 32]),
    "": (10, [1, 8, 8]),
}


def lines(file):
    """All command lines in the comment that a file begins with, as words behind `robustguide`."""
    head = []
    for line in (ROOT / file).read_text().splitlines():
        if not line.startswith("#"):
            break
        head.append(line.removeprefix("#").strip())
    return [tuple(shlex.split(line)[1:]) for line in head if line.startswith("robustguide ")]


def commands(file):
    """Those that read the file; others make what it reads."""
    return [words for words in lines(file) if words[0] in command_line.CommandLine.subcommands()]


def configs(command):
    """The files that a command line reads, in order."""
    return [word for before, word in pairwise(command) if before == "--config"]


COMMANDS = sorted({command for file in FILES for command in commands(file)})


def name(command):
    """For the names of tests."""
    stems = [Path(file).stem for file in configs(command)]
    return "-".join([command[0], *stems])


def specification(class_path, **arguments):
    return {"class_path": class_path, "init_args": arguments}


def tiny(kind, num_classes, shape):
    """The smallest network that stands in for a trained one."""
    unet = dict(image_size=shape[1], in_channels=shape[0], model_channels=4, num_res_blocks=1)
    unet |= dict(attention_resolutions=[], channel_mult=[1], num_heads=1)
    levels = specification("robustguide.noise.linear_levels")
    if kind == "classifier" and shape[1] == 32:  # with the readout of the networks of that size
        unet |= dict(out_channels=num_classes, pool="attention")
        net = specification("robustguide.nets.EncoderUNet", **unet)
    elif kind == "classifier":
        net = specification("robustguide.nets.MLP", shape=shape, num_logits=num_classes, width=4)
    else:
        net = specification(
            "robustguide.nets.UNet",
            **unet,
            out_channels=2 * shape[0],
            num_classes=num_classes,
            num_null_labels=1,
        )
    common = dict(net=net, levels=levels, num_classes=num_classes)
    if kind == "classifier":
        return specification("robustguide.classifiers.Timed", **common)
    denoiser = "robustguide.denoisers.EpsDenoiser"
    return specification(denoiser, **common, shape=shape, learns_variance=True)


def write_checkpoint(path):
    """What training would have left under this path."""
    num_classes, shape = next(made for key, made in SHAPES.items() if key in path)
    described = tiny(Path(path).stem, num_classes, shape)
    if "digits_clean" in path:  # with the activations that some configurations replace
        net = dict(shape=shape, num_logits=num_classes, width=4, activation="relu")
        net = specification("robustguide.nets.MLP", **net)
        shelf = dict(net=net, num_classes=num_classes, mean=[0.5], std=[0.5])
        described = specification("robustguide.classifiers.OffTheShelf", **shelf)
    names = [str(y) for y in range(num_classes)]
    network = build(described)
    export(network, path, described, class_names=names, shape=shape, weights="raw")


def write_autoencoder(folder):
    """A tiny autoencoder in the layout of `diffusers`: 4 channels, an eighth of the size."""
    arguments = dict(block_out_channels=[4] * 4, layers_per_block=1, norm_num_groups=2)
    config = {"_class_name": "AutoencoderKL", "latent_channels": 4, **arguments}
    tensors = KLAutoencoder(**arguments).net.state_dict()
    Path(folder).mkdir(parents=True)
    Path(folder, "config.json").write_text(json.dumps(config))
    save_file(tensors, Path(folder, "diffusion_pytorch_model.safetensors"))


def write_latents(folder):
    """A manifest as `robustguide encode` leaves it, of no images."""
    encoding = Encoding("KLCodec", "", (1, 32, 32), 4, "float16", False, (1.0,) * 4, (0.0,) * 4)
    names = [str(y) for y in range(10)]
    Path(folder).mkdir(parents=True)
    Manifest(names, (4, 8, 8), "", {split: [] for split in SPLITS}, encoding).write(Path(folder))


@contextmanager
def newcomer(folder) -> Iterator[list[str]]:
    """In a folder with the configurations and the checkpoints that they name, without network.

    Yields the weights that a library was asked to fetch.
    """
    fetched: list[str] = []

    def resnet(weights, **kwargs):
        fetched.append(str(weights))
        name = type(weights).__name__.removesuffix("_Weights").lower()
        return torchvision.models.get_model(name).state_dict()

    def load_pretrained(model, pretrained_cfg, **kwargs):
        fetched.append(pretrained_cfg["hf_hub_id"])

    def whole_clip(weights):
        architectures = {
            "clip-rn50": "RN50-quickgelu",
            "clip-vit-l14-336": "ViT-L-14-336-quickgelu",
        }
        known = {card(name).file: architecture for name, architecture in architectures.items()}
        fetched.append(weights)
        return clip(known[Path(weights).name]).state_dict()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchvision.models.WeightsEnum, "get_state_dict", resnet)
        patch.setattr("timm.models._builder.load_pretrained", load_pretrained)
        patch.setattr("robustguide.checkpoints.off_the_shelf.tensors_of", whole_clip)
        # The commands are the real ones, up to the moment when the trainer would start.
        patch.setattr(command_line.CommandLine, "_run_subcommand", lambda self, subcommand: None)
        # Lightning 2.6 calls what jsonargparse 5 will drop.
        patch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
        patch.chdir(folder)
        Path("configs").symlink_to(ROOT / "configs")
        text = " ".join((ROOT / file).read_text() for file in FILES)
        for path in sorted(set(re.findall(r"[\w/]+/(?:classifier|denoiser)\.safetensors", text))):
            write_checkpoint(path)
        for path in sorted(set(re.findall(r"root: (runs/\w+_latents)\}", text))):
            write_latents(path)
        for path in sorted(set(re.findall(r"path: (models/[\w-]+)\}", text))):
            write_autoencoder(path)
        yield fetched
        built.cache_clear()


@cache
def built(command):
    """What the command line made of a command.

    What is to be trained, or published, is on the meta device; tiny files are read.
    """
    known = command_line.CommandLine.subcommands()
    text = "".join((ROOT / file).read_text() for file in configs(command))
    device = "meta" if command[0] == "fit" or "{card: " in text else "cpu"
    if "/published/" in "".join(command):
        command = (*command, "--data.count=1000")  # drawing 50,000 labels takes a second
    with torch.device(device), pytest.MonkeyPatch.context() as patch:
        # The parsers of the other three subcommands would be the longest part.
        only = staticmethod(lambda: {command[0]: known[command[0]]})
        patch.setattr(command_line.CommandLine, "subcommands", only)
        return command_line.run(list(command))


def of(file):
    """What is built by the first command line in the head of a file."""
    return built(commands(f"configs/{file}.yaml")[0])


def header(file):
    """The comment that a file begins with, as one line."""
    lines = (ROOT / file).read_text().splitlines()
    return " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))


def leaves(value, where=()):
    """Values by the way to them; class paths, which merging may need again, are none."""
    if isinstance(value, dict):
        for key, part in value.items():
            if key != "class_path":
                yield from leaves(part, where if key == "init_args" else (*where, key))
    else:
        yield ".".join(where), value


def stated(file):
    """Values in a file by the way to them."""
    return dict(leaves(yaml.safe_load((ROOT / file).read_text())))
