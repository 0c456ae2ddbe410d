"""Robust accuracy after training, the published way and ours, over seeds; and cheaper attacks.

    python benchmarks/training.py [--seeds 3] [--data digits fashion_mnist] [--jobs 2]

Every way trains the same network from the same weights, as many passes over the network's weights
as `RECIPES` says (a pass of free training is one). Accuracy is that of test images at four noise
levels after PGD of 20 steps in float32 within the same radius, mean over the levels; beside it the
seconds of training on one thread. Two ways are within seed noise of each other where the
difference of their means is below twice its standard error, or below a point.
"""

import argparse
import logging
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from statistics import mean, stdev
from typing import Any

import numpy as np
import published
import torch
import turns
import yaml
from lightning import Trainer
from torch import Tensor

from robustguide.attacks import PGD
from robustguide.checkpoints import build
from robustguide.data import Digits, FashionMNIST, Images
from robustguide.data.images import ImageSource, Rows
from robustguide.interfaces import Classifier
from robustguide.modules import FreeClassification, RobustClassification
from robustguide.noise import UniformT, expand, linear_levels, noise_like, perturb, vp_scale

LEVELS = (0.1, 0.3, 0.5, 1.0)
NOISE = linear_levels()
CONFIGS = {
    "digits": "configs/overlay/digits_classifier.yaml",
    "fashion_mnist": "configs/overlay/fashion_mnist_classifier.yaml",
}
SMALL = {"fashion_mnist": dict(image_size=16, attention_resolutions=[2])}
RECIPES: dict[str, dict[str, Any]] = {
    "digits": dict(radius=1.0, steps=7, rate=2e-3, passes=600, batch=64),
    "fashion_mnist": dict(radius=1.0, steps=5, rate=2e-3, passes=300, batch=32),
}
TESTED = 500  # images


class Halved(ImageSource):
    """Fashion-MNIST of 16 x 16 pixels, each the mean of four."""

    class_names, shape = FashionMNIST.class_names, (1, 16, 16)

    def open(self, name: str) -> Rows:
        """The rows of a split."""
        found = FashionMNIST(size=32).open(name)
        assert isinstance(found, Rows)
        small = found.images.reshape(-1, 16, 2, 16, 2).mean((2, 4), dtype=np.float32)
        return Rows(small, found.labels, found.rows, found.name, self.num_classes)


def data(name: str) -> Images:
    """Images of a set."""
    source = Digits() if name == "digits" else Halved()
    return Images(source, batch_size=RECIPES[name]["batch"])


def classifier(name: str, seed: int) -> Classifier:
    """Random weights of a seed."""
    torch.manual_seed(seed)
    with open(CONFIGS[name]) as file:
        told = yaml.safe_load(file)["model"]["init_args"]["classifier"]
    told["init_args"]["net"]["init_args"] |= SMALL.get(name, {})
    made: Classifier = build(told)
    return made.train().requires_grad_()


def optimizer(recipe: dict[str, Any]) -> Callable[[Any], torch.optim.Optimizer]:
    """The same one for all ways."""
    return lambda parameters: torch.optim.AdamW(parameters, lr=recipe["rate"], weight_decay=0.05)


def falling(recipe: dict[str, Any]) -> Callable[[torch.optim.Optimizer], Any]:
    """A rate that falls linearly to 0."""
    return lambda made: torch.optim.lr_scheduler.LinearLR(made, 1.0, 0.0, recipe["passes"])


def by_published(name: str, seed: int) -> Classifier:
    """Trained by the plain loop."""
    recipe, held = RECIPES[name], classifier(name, seed)
    net: Any = published.as_published(held.net)  # type: ignore[arg-type]
    made = optimizer(recipe)(net.parameters())
    schedule, noise = falling(recipe)(made), UniformT(NOISE)
    loader = data(name).train_dataloader()
    done = 0
    while done < recipe["passes"]:
        for images, y, _ in islice(loader, recipe["passes"] - done):
            torch.manual_seed(1000 * seed + done)
            sigma = noise.sample(len(images), "cpu")
            x = perturb(images, sigma, noise_like(images, None))
            x_t, t = x / expand(vp_scale(sigma), x), NOISE.t(sigma).float()
            published.trained(net, made, x_t.float(), y, t, recipe["radius"], recipe["steps"])
            schedule.step()
            done += 1
    return held


def by_ours(
    name: str,
    seed: int,
    precision: Any = "32-true",
    *,
    is_attacked: bool = True,
    replays: int = 0,
    **changes: Any,
) -> Classifier:
    """Trained by Lightning; changes are of the attack, or of the module."""
    recipe, held = RECIPES[name], classifier(name, seed)
    shared: dict[str, Any] = dict(
        noise=UniformT(NOISE),
        optimizer=optimizer(recipe),
        scheduler=falling(recipe),
        seed=seed,
    )
    if replays:
        module: RobustClassification = FreeClassification(
            held, radius=recipe["radius"], replays=replays, **changes, **shared
        )
    else:
        warm = changes.pop("warm_start", False)
        attack = PGD(recipe["radius"], **({"steps": recipe["steps"]} | changes))
        attack = attack if is_attacked else None
        module = RobustClassification(held, attack=attack, warm_start=warm, **shared)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        precision=precision,
        max_steps=recipe["passes"],
        max_epochs=-1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, datamodule=data(name))
    return held


def accuracy(held: Classifier, name: str) -> float:
    """Under attack, in float32."""
    attack = PGD(RECIPES[name]["radius"], steps=20)
    right: list[Tensor] = []
    held.eval()
    for images, y, _ in islice(data(name).test_dataloader(), math.ceil(TESTED / 64)):
        for number, level in enumerate(LEVELS):
            sigma = torch.full((len(images),), level)
            generator = torch.Generator().manual_seed(number)
            x = perturb(images, sigma, torch.randn(images.shape, generator=generator))
            moved = attack(held, x, sigma, y)
            with torch.no_grad():
                right.append(held(moved, sigma).argmax(-1) == y)
    return float(torch.cat(right).float().mean())


WAYS: dict[str, Callable[[str, int], Classifier]] = {
    "published": by_published,
    "ours, float32": by_ours,
    "ours, bfloat16": lambda name, seed: by_ours(name, seed, "bf16-mixed"),
    "one step from a random point": lambda name, seed: by_ours(
        name, seed, steps=1, step_fraction=1.25, random_start=True
    ),
    "free, 4 passes a batch": lambda name, seed: by_ours(name, seed, replays=4, step_fraction=0.5),
    "one step from where the last ended": lambda name, seed: by_ours(
        name, seed, steps=1, step_fraction=1.0, warm_start=True
    ),
    "no attack": lambda name, seed: by_ours(name, seed, is_attacked=False),
}


def trial(name: str, what: str, seed: int) -> tuple[float, float]:
    """Accuracy in percent and seconds of training of one network."""
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    start = time.perf_counter()
    held = WAYS[what](name, seed)
    taken = time.perf_counter() - start
    return 100 * accuracy(held, name), taken


def main() -> int:
    """Reads the command line, measures and tells."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--data", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    arguments.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    arguments.add_argument(
        "--on-digits", nargs="+", choices=list(WAYS), default=[], help="ways on digits alone"
    )
    arguments.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at once")
    given = arguments.parse_args()
    if given.seeds < 2:
        arguments.error(f"--seeds is {given.seeds}; expected 2 or more, for seed noise")
    cells = [(name, what) for name in given.data for what in given.ways]
    cells += [("digits", what) for what in given.on_digits]
    spawn = multiprocessing.get_context("spawn")
    facts, is_equal, reference = dict[str, object](), True, dict[str, list[float]]()
    with ProcessPoolExecutor(given.jobs, mp_context=spawn) as pool:
        begun = {
            cell: [pool.submit(trial, *cell, seed) for seed in range(given.seeds)]
            for cell in cells
        }
        for (name, what), trials in begun.items():
            found, taken = zip(*(each.result() for each in trials), strict=True)
            first = reference.setdefault(name, list(found))
            off = mean(found) - mean(first)
            error = math.hypot(stdev(found), stdev(first)) / math.sqrt(given.seeds)
            facts[f"{name}, {what}"] = (
                f"{mean(found):.1f} % (sd {stdev(found):.1f}), {off:+.1f} of the first, standard "
                f"error {error:.1f}; {mean(taken):.0f} s"
            )
            print(f"{name}, {what}: {facts[f'{name}, {what}']}", flush=True)
            if what.startswith("ours"):
                is_equal &= abs(off) < max(2 * error, 1.0)
    turns.record("training", facts=facts)
    return 0 if is_equal else 1


if __name__ == "__main__":
    sys.exit(main())
