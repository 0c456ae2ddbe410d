"""Guided sampling, the published loop and ours in turns, and how equal their images are.

    python benchmarks/sampling.py [--turns 3] [--images 8] [--steps 18] [--compile]

A 64 px U-Net as ADM's with an eighth of its work and a classifier of its kind guide together:
classifier-free within an interval, and by the classifier's gradient. 18 steps of Heun, then 50 of
the chain, the predicted image clipped as ADM's loop does. Both have seen some batches of
Fashion-MNIST, and are kept in a file for the next time. Images are compared with the published
loop's in float32, by the peak signal-to-noise ratio on [-1, 1]. What each switch gives is measured
on --steps of Heun.
"""

import argparse
import math
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import published
import torch
import turns
from lightning import Trainer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from robustguide.classifiers import Timed
from robustguide.data import FashionMNIST, Images
from robustguide.denoisers import EpsDenoiser
from robustguide.guidance import ClassifierFree, ClassifierGuidance, Guidance, Scaled, Within
from robustguide.machine.flops import Tally
from robustguide.machine.peak import matmul_peak
from robustguide.modules import Denoising, RobustClassification
from robustguide.nets import EncoderUNet, UNet
from robustguide.noise import ChainGrid, RhoGrid, UniformT, linear_levels
from robustguide.samplers import Ancestral, Heun, Sampler, SeededNoise

SHAPE, CLASSES = (3, 64, 64), 10
INTERVAL, WEIGHT, SCALE, CLIP = (0.2, 5.0), 2.0, 1.0, 1.0
BATCH = 2  # images, of the training
DECIBELS = 40.0
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LEVELS = linear_levels()
WEIGHTS = turns.RECORDS / "sampling.safetensors"


def networks() -> tuple[nn.Module, nn.Module]:
    """The U-Net and the classifier, the same ones each time, from the file if it is there."""
    torch.manual_seed(0)
    shared: dict[str, Any] = dict(
        image_size=64,
        in_channels=3,
        attention_resolutions=[2, 4, 8],
        channel_mult=(1, 2, 3, 4),
        num_head_channels=64,
        use_scale_shift_norm=True,
        resblock_updown=True,
        num_res_blocks=1,
    )
    net = UNet(**shared, model_channels=64, out_channels=3, num_classes=CLASSES, num_null_labels=1)
    classifier = EncoderUNet(**shared, model_channels=64, out_channels=CLASSES, pool="attention")
    both = nn.ModuleList([net, classifier])
    if not WEIGHTS.is_file():
        trained(net, classifier)
        WEIGHTS.parent.mkdir(parents=True, exist_ok=True)
        save_file(both.state_dict(), WEIGHTS)
    both.load_state_dict(load_file(WEIGHTS))
    both.to(DEVICE).eval().requires_grad_(False)
    return net, classifier


def trained(net: nn.Module, classifier: nn.Module) -> None:
    """Some steps on Fashion-MNIST, so that images converge as those of trained networks do."""
    noise = UniformT(LEVELS)
    optimizer = partial(torch.optim.AdamW, lr=3e-4)
    denoiser = EpsDenoiser(net, LEVELS, CLASSES, SHAPE)
    modules: dict[str, tuple[Any, int]] = {
        "U-Net": (Denoising(denoiser, noise, label_dropout=0.1, optimizer=optimizer), 60),
        "classifier": (
            RobustClassification(Timed(classifier, LEVELS, CLASSES), noise, optimizer=optimizer),
            40,
        ),
    }
    for name, (module, steps) in modules.items():
        print(f"Training the {name} for {steps} steps", flush=True)
        trainer = Trainer(
            precision="bf16-mixed",
            max_steps=steps,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
        )
        trainer.fit(module, datamodule=Images(FashionMNIST(size=64, channels=3), batch_size=BATCH))


class Ours:
    """Our sampler with our terms, with switches."""

    def __init__(
        self,
        sampler: Sampler,
        *,
        bf16: bool = True,
        channels_last: bool = True,
        compiled: bool = False,
    ) -> None:
        net, classifier = networks()
        for each in (net, classifier):
            if not channels_last:
                published.contiguous(each)
            if compiled:
                each.compile(dynamic=False)
        self.sampler, self.bf16 = sampler, bf16
        self.denoiser = EpsDenoiser(net, LEVELS, CLASSES, SHAPE)
        by = ClassifierGuidance(Timed(classifier, LEVELS, CLASSES))
        self.terms: dict[str, Guidance] = {
            "free": Within(Scaled(ClassifierFree(), weight=WEIGHT), *INTERVAL),
            "classifier": Scaled(by, scale=SCALE),
        }

    def __call__(self, count: int) -> Tensor:
        """Images of the first seeds."""
        noise, y = SeededNoise(range(count)), torch.arange(count, device=DEVICE) % CLASSES
        x = self.sampler.start(noise.draw(SHAPE, DEVICE), self.denoiser)
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=self.bf16):
            return self.sampler(self.denoiser, self.terms, x, y, noise)


class Published:
    """The plain loops with the same networks, in float32."""

    def __init__(self, sampler: Sampler) -> None:
        net, classifier = (published.as_published(each) for each in networks())
        self.sampler = sampler
        self.guide = published.Guide(net, classifier, CLASSES, WEIGHT, *INTERVAL, SCALE, CLIP)
        self.denoiser = EpsDenoiser(net, LEVELS, CLASSES, SHAPE)  # for its levels

    def __call__(self, count: int) -> Tensor:
        """Images of the first seeds."""
        noise, y = SeededNoise(range(count)), torch.arange(count, device=DEVICE) % CLASSES
        first = noise.draw(SHAPE, DEVICE)
        sigmas = self.sampler.levels(self.denoiser)
        if isinstance(self.sampler.grid, ChainGrid):
            steps, bars = self.sampler.grid.indices()[::-1], LEVELS.alpha_bars.tolist()
            return published.ancestral(self.guide, first, y, steps, bars, noise)
        return published.heun(self.guide, first * sigmas[0], y, sigmas, LEVELS.t)


class Kept:
    """A way of sampling a number of images, which keeps those of its last call."""

    def __init__(self, way: Callable[[int], Tensor], count: int) -> None:
        self.way, self.count = way, count
        self.images = torch.empty(0)

    def __call__(self) -> None:
        """Samples."""
        self.images = self.way(self.count)


def heun(steps: int) -> Heun:
    """EDM's sampler on its own levels."""
    return Heun(RhoGrid(steps, sigma_min=0.002, sigma_max=80.0), CLIP)


def decibels(x: Tensor, reference: Tensor, bound: float = CLIP) -> float:
    """Peak signal-to-noise ratio on [-1, 1], of each image; the smallest.

    It is that of the pixels within the bound: at it, where all black is, two ways agree.
    """
    inside = (reference.abs() < 0.99 * bound).flatten(1).float()
    error = (x - reference).square().flatten(1).mul(inside).sum(1) / inside.sum(1)
    return float(10 * math.log10(4 / max(float(error.max()), 1e-20)))


def main() -> int:
    """Reads the command line, measures and tells."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--turns", type=int, default=3)
    arguments.add_argument("--images", type=int, default=8)
    arguments.add_argument("--steps", type=int, default=18, help="of Heun, with each switch")
    arguments.add_argument("--compile", action="store_true", help="compile too; minutes on a CPU")
    given = arguments.parse_args()
    samplers: dict[str, Sampler] = {
        "18 steps of Heun": heun(18),
        "50 ancestral steps": Ancestral(ChainGrid(LEVELS, "50"), CLIP),
    }
    ratios, facts, is_equal = [], dict[str, object](), True
    for name, sampler in samplers.items():
        plain = Kept(Published(sampler), given.images)
        ours = Kept(Ours(sampler), given.images)
        ratios.append(
            turns.turns(f"{name}, published", plain, ours, given.turns, warm=0, wanted=2)
        )
        with Tally() as tally:
            exact = Ours(sampler, bf16=False)(1)
        for kind, images in (("bfloat16", ours.images), ("float32", exact)):
            found = decibels(images, plain.images[: len(images)])
            facts[f"{name}: our images in {kind}, PSNR"] = f"{found:.1f} dB"
            is_equal &= found >= DECIBELS
        peak = matmul_peak(DEVICE, torch.bfloat16) or math.nan
        share = tally.flops * given.images / ratios[-1].seconds[1] / peak
        facts[f"{name}: FLOP an image"] = f"{tally.flops:.4g}"
        facts[f"{name}: utilisation of the bfloat16 peak of {peak:.3g}"] = f"{share:.2f}"
    short, count = heun(given.steps), given.turns
    switches: dict[str, dict[str, bool]] = {
        "bfloat16 (else float32)": dict(bf16=False),
        "channels-last maps and their norm (else contiguous)": dict(channels_last=False),
    }
    name = f"{given.steps} steps of Heun"
    fast = Kept(Ours(short), given.images)
    for what, change in switches.items():
        slow = Kept(Ours(short, **change), given.images)
        ratios.append(turns.turns(f"{name}, {what}", slow, fast, count, warm=0))
    if given.compile:
        way = Kept(Ours(short, compiled=True), given.images)
        ratios.append(turns.turns(f"{name}, torch.compile besides", fast, way, count))
    is_reached = turns.record("sampling", ratios, facts)
    return 0 if is_reached and is_equal else 1


if __name__ == "__main__":
    sys.exit(main())
