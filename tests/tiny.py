"""Tiny networks of the digits, the configurations that train and sample them, and runs of them.

Everything goes through the command line's own door, in this process.
"""

import copy

import torch
import yaml
from lightning import Trainer

from robustguide.__main__ import main
from robustguide.checkpoints import build, export

LEVELS = {"class_path": "robustguide.noise.linear_levels"}


def spec(class_path, **arguments):
    return {"class_path": f"robustguide.{class_path}", "init_args": arguments}


def mlp(**arguments):
    return spec("nets.MLP", **({"shape": [1, 8, 8], "width": 16, "depth": 1} | arguments))


def classifier(**net):
    return spec("classifiers.Timed", net=mlp(num_logits=10, **net), levels=LEVELS, num_classes=10)


def denoiser(**net):
    net = mlp(num_classes=10, num_null_labels=1, **net)
    return spec("denoisers.EpsDenoiser", net=net, levels=LEVELS, num_classes=10, shape=[1, 8, 8])


def pgd(**arguments):
    return spec("attacks.PGD", **({"radius": 0.3, "steps": 2} | arguments))


def adamw(lr=0.01):
    return {"class_path": "torch.optim.AdamW", "init_args": {"lr": lr}}


def saving(every, **arguments):
    """Checkpoints at every so many steps."""
    arguments = {"every_n_train_steps": every} | arguments
    return {
        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
        "init_args": arguments,
    }


def merged(base, *changes):
    """Dicts merged deeply; another class path replaces what stood there."""
    base = copy.deepcopy(base)
    for change in changes:
        for key, value in change.items():
            if (
                isinstance(value, dict)
                and isinstance(base.get(key), dict)
                and (value.get("class_path") in (None, base[key].get("class_path")))
            ):
                base[key] = merged(base[key], value)
            else:
                base[key] = copy.deepcopy(value)
    return base


TRAINER = {
    "accelerator": "cpu",
    "devices": 1,
    "enable_model_summary": False,
    "enable_progress_bar": False,
    "num_sanity_val_steps": 0,
}
TRAINING = {
    "seed_everything": 0,
    "data": spec("data.Images", batch_size=64, eval_limit=60),
    "trainer": TRAINER
    | {
        "max_epochs": -1,
        "max_steps": 60,
        "val_check_interval": 60,
        "check_val_every_n_epoch": None,
        "log_every_n_steps": 10,
    },
}


def classification(**init_args):
    """Trains the tiny classifier."""
    arguments = {
        "classifier": classifier(),
        "noise": spec("noise.LogNormal"),
        "optimizer": adamw(),
        "levels": [0.1, 1.0],
    }
    model = spec("modules.RobustClassification", **arguments | init_args)
    return merged(TRAINING, {"model": model})


def denoising(**init_args):
    """Trains the tiny denoiser."""
    arguments = {
        "denoiser": denoiser(),
        "noise": spec("noise.UniformT", levels=LEVELS),
        "label_dropout": 0.3,
        "optimizer": adamw(),
    }
    return merged(TRAINING, {"model": spec("modules.Denoising", **arguments | init_args)})


def exported(path, described, shape=(1, 8, 8)):
    """The file of a network of ten classes with random weights; its path."""
    names = [str(digit) for digit in range(10)]
    made = build(described)
    export(made, path, described, class_names=names, shape=list(shape), weights="raw")
    return str(path)


def loaded(kind, path):
    return spec(f"checkpoints.load_{kind}", path=str(path))


def ancestral(steps=10):
    return spec(
        "samplers.Ancestral",
        grid=spec("noise.ChainGrid", levels=LEVELS, spacing=str(steps)),
        clip=1.0,
    )


def guided(path, scale=2.0):
    """Guidance by a classifier."""
    term = spec("guidance.ClassifierGuidance", classifier=loaded("classifier", path))
    return spec("guidance.Scaled", scale=scale, term=term)


def generation(path, *, count=20, callbacks=(), **init_args):
    """Samples from a denoiser's file."""
    arguments = {"denoiser": loaded("denoiser", path), "sampler": ancestral(), "watched_steps": 3}
    return {
        "seed_everything": 0,
        "model": spec("modules.Generation", **arguments | init_args),
        "data": spec("data.SeedData", count=count, num_classes=10, batch_size=8),
        "trainer": TRAINER | {"callbacks": list(callbacks)},
    }


def run(folder, command, config, *words):
    """Writes the configuration and runs `robustguide COMMAND` with `folder` as the run's."""
    folder.mkdir(parents=True, exist_ok=True)
    config = merged(config, {"trainer": {"default_root_dir": str(folder)}})
    path = folder.parent / f"{folder.name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return main([command, "--config", str(path), *words])


def trainer(folder, *callbacks, **arguments):
    """A trainer as the command line makes it, without a logger."""
    settings = TRAINER | {
        "logger": False,
        "enable_checkpointing": False,
        "inference_mode": False,
        "use_distributed_sampler": False,
        "max_epochs": -1,
        "max_steps": 1,
    }
    return Trainer(default_root_dir=folder, callbacks=list(callbacks), **settings | arguments)


def batch(count=6, shape=(1, 8, 8), num_classes=10):
    """Images, labels and numbers."""
    generator = torch.Generator().manual_seed(0)
    x_0 = torch.rand(count, *shape, generator=generator) * 2 - 1
    return x_0, torch.arange(count) % num_classes, torch.arange(count)
