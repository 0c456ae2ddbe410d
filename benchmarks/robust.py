"""The step of robust training, the published way and ours in turns, and what each switch gives.

    python benchmarks/robust.py [--checkpoint FILE] [--turns 7] [--compile] [--blocks]

The network is the CIFAR-10 classifier of Kawar, Ganz and Elad (2022), the images are those of
Fashion-MNIST in three channels of 32 px, 128 a batch. The checkpoint is what
configs/fit/fashion_mnist_cifar10_robust.yaml trains. Both ways train on the same noised images.
"""

import argparse
import sys
from collections.abc import Callable
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import published
import torch
import turns
import yaml
from torch import Tensor

from robustguide.attacks import PGD
from robustguide.checkpoints import build, load_classifier
from robustguide.data import FashionMNIST, Images
from robustguide.interfaces import Classifier
from robustguide.machine.flops import Tally
from robustguide.machine.peak import matmul_peak
from robustguide.modules import RobustClassification
from robustguide.modules.robust import Batch
from robustguide.noise import UniformT, expand, linear_levels, noise_like, perturb, vp_scale

CONFIG = Path(__file__).parent.parent / "configs/overlay/cifar10_classifier.yaml"
CHECKPOINT = Path("runs/fashion_mnist_cifar10_robust/classifier.safetensors")
BATCH, RADIUS, STEPS, RATE = 128, 0.5, 7, 1e-6  # a rate that leaves the weights what they are
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def classifier(checkpoint: Path | None) -> Classifier:
    """With the weights of a file, or random ones."""
    if checkpoint is not None:
        loaded: Classifier = load_classifier(str(checkpoint))
        return loaded.to(DEVICE).train()
    torch.manual_seed(0)
    made: Classifier = build(
        yaml.safe_load(CONFIG.read_text())["model"]["init_args"]["classifier"]
    )
    return made.to(DEVICE).train()


def batches(count: int) -> list[Batch]:
    """Test images, labels and numbers."""
    data = Images(FashionMNIST(size=32, channels=3), batch_size=BATCH)
    found = islice(data.test_dataloader(), count)
    return [(images.to(DEVICE), y.to(DEVICE), index) for images, y, index in found]


class Published:
    """Steps of the published recipe."""

    def __init__(self, checkpoint: Path | None) -> None:
        held = classifier(checkpoint)
        net: Any = held.net
        self.net = published.as_published(net).requires_grad_()
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=RATE)
        self.levels = linear_levels()
        self.noise = UniformT(self.levels)
        self.history: list[Tensor] = []

    def __call__(self, batch: Batch) -> None:
        """One step."""
        images, y, _ = batch
        torch.manual_seed(int(batch[2][0]))
        sigma = self.noise.sample(len(images), DEVICE)
        x = perturb(images, sigma, noise_like(images, None))
        x_t, t = x / expand(vp_scale(sigma), x), self.levels.t(sigma).float()
        self.history = published.trained(
            self.net, self.optimizer, x_t.float(), y, t, RADIUS, STEPS
        )


class Ours:
    """Steps of `RobustClassification`, with switches."""

    def __init__(
        self,
        checkpoint: Path | None,
        *,
        bf16: bool = True,
        leaves: bool = True,
        probe: bool = False,
        channels_last: bool = True,
        fused: bool = True,
        compiled: bool = False,
    ) -> None:
        sizes = (BATCH, BATCH // 2, BATCH // 4) if compiled else ()
        attack = PGD(RADIUS, STEPS, early_stop=leaves, probe=probe, batch_sizes=sizes)
        held = classifier(checkpoint).requires_grad_()
        self.module = RobustClassification(held, UniformT(linear_levels()), attack)
        self.module.log = lambda *args, **named: None  # type: ignore[method-assign]
        net: Any = held.net
        if not channels_last:
            published.contiguous(net)
        if compiled:
            net.compile(dynamic=False)
        self.optimizer = torch.optim.AdamW(held.parameters(), lr=RATE, fused=fused)
        self.autocast: Callable[[], Any] = nullcontext
        if bf16:
            self.autocast = lambda: torch.autocast(DEVICE.type, torch.bfloat16)

    def __call__(self, batch: Batch) -> None:
        """One step."""
        torch.manual_seed(int(batch[2][0]))
        with self.autocast():
            loss = self.module.training_step(batch, 0)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def compared(
    what: str, slow: Any, fast: Any, count: int, wanted: float | None = None, warm: int = 1
) -> turns.Ratio:
    """Two ways on the same batches, another one each turn, after some that warm up."""
    given = batches(count + warm)
    places = {id(slow): 0, id(fast): 0}

    def step(way: Any) -> Callable[[], None]:
        def run() -> None:
            way(given[places[id(way)]])
            places[id(way)] += 1

        return run

    return turns.turns(what, step(slow), step(fast), count, wanted=wanted, warm=warm)


def flops_of(way: Any) -> float:
    """Of one step."""
    with Tally() as tally:
        way(batches(1)[0])
    return float(tally.flops)


def main() -> int:
    """Reads the command line, measures and tells."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    arguments.add_argument("--turns", type=int, default=7)
    arguments.add_argument("--compile", action="store_true", help="compile too; minutes on a CPU")
    arguments.add_argument("--blocks", action="store_true", help="our blocks alone, too")
    given = arguments.parse_args()
    if not given.checkpoint.is_file():
        command = next(line for line in TRAINED.read_text().splitlines() if "robustguide" in line)
        print(f"There is no {given.checkpoint}; train it first:\n  {command.lstrip('# ')}")
        return 2
    count, path = given.turns, given.checkpoint
    plain, ours = Published(path), Ours(path)
    ratios = [
        compared("published recipe, trained weights", plain, ours, count, wanted=3.5),
        compared("published recipe, random weights", Published(None), Ours(None), count, warm=0),
    ]
    plain(batches(1)[0])
    active = [float(right.float().mean()) for right in plain.history]
    switches: dict[str, Ours] = {
        "bfloat16 (else float32)": Ours(path, bf16=False),
        "fallen rows leave (else all take every step)": Ours(path, leaves=False),
        "channels-last maps and their norm (else contiguous)": Ours(path, channels_last=False),
        "fused optimizer (else one by one)": Ours(path, fused=False),
    }
    ratios += [compared(what, other, ours, count) for what, other in switches.items()]
    additions = {"a probe besides": dict(probe=True)}
    if given.compile:
        additions["torch.compile in three sizes besides"] = dict(compiled=True)
    ratios += [
        compared(what, ours, Ours(path, **change), count) for what, change in additions.items()
    ]
    if given.blocks:
        blocks = Ours(path, bf16=False, leaves=False, fused=False)
        ratios.append(compared("our blocks, published otherwise", plain, blocks, count))
    work = flops_of(ours)
    peak = matmul_peak(DEVICE, torch.bfloat16)
    bound = ratios[0].seconds[0] * peak / work
    facts = {
        "images a second": f"{BATCH / ratios[0].seconds[1]:.1f}",
        "active fraction before each step of the attack": [round(each, 3) for each in active],
        "FLOP of a step, published": f"{flops_of(plain):.4g}",
        "FLOP of a step, ours": f"{work:.4g}",
        "matmul peak in float32, FLOP/s": f"{matmul_peak(DEVICE, torch.float32):.4g}",
        "matmul peak in bfloat16, FLOP/s": f"{peak:.4g}",
        "utilisation of the bfloat16 peak": f"{work / ratios[0].seconds[1] / peak:.2f}",
        "ceiling: all FLOPs of ours at the bfloat16 peak": f"{bound:.2f} times",
    }
    return 0 if turns.record("robust", ratios, facts) else 1


TRAINED = CONFIG.parent.parent / "fit/fashion_mnist_cifar10_robust.yaml"

if __name__ == "__main__":
    sys.exit(main())
