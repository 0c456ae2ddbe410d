"""Memory of long runs and of large steps.

    python benchmarks/memory.py [flat] [step]

`flat` samples 10,000 batches of a tiny network with classifier guidance, in one process, and
fails if that holds more than 8 MiB more after the last than after the first thousand. `step` tells
the peak of the robust step of configs/overlay/cifar10_classifier.yaml, with activations that are
kept and with blocks that are computed again for the gradient (`use_checkpoint`).
"""

import sys
import time
from pathlib import Path

import torch
import turns
from torch import nn

from robustguide.classifiers import Timed
from robustguide.denoisers import EpsDenoiser
from robustguide.guidance import ClassifierGuidance, Scaled
from robustguide.machine.memory import held
from robustguide.modules import Generation
from robustguide.nets import MLP
from robustguide.noise import ChainGrid, linear_levels
from robustguide.plans.cost import cost_of, read
from robustguide.plans.measuring import measured
from robustguide.samplers import Ancestral

CONFIGS = Path(__file__).parents[1] / "configs"
STEP = (
    "overlay/cifar10.yaml",
    "overlay/cifar10_classifier.yaml",
    "overlay/noisy_classifier.yaml",
    "fit/cifar10_robust.yaml",
)
ARGUMENT = "--model.classifier.init_args.net.init_args.use_checkpoint"
WARM, ALL = 1_000, 10_000
GROWTH = 8 * 2**20
SHAPE, CLASSES, ROWS = (1, 8, 8), 10, 4
BATCH = 32


def generation() -> Generation:
    """Two steps, guided by a classifier."""
    torch.manual_seed(0)
    levels = linear_levels()
    net = MLP(list(SHAPE), num_classes=CLASSES, num_null_labels=1, width=16, depth=1)
    judge = MLP(list(SHAPE), num_logits=CLASSES, width=16, depth=1)
    for parameter in [*net.parameters(), *judge.parameters()]:
        nn.init.normal_(parameter, std=0.1)  # a new network has no gradient
    denoiser = EpsDenoiser(net, levels, num_classes=CLASSES, shape=SHAPE)
    term = Scaled(ClassifierGuidance(Timed(judge, levels, CLASSES)), scale=2.0)
    return Generation(denoiser, Ancestral(ChainGrid(levels, "2"), clip=1.0), {"plain": term})


def flat() -> tuple[bool, dict[str, object]]:
    """Whether memory stays what it is, and what it is."""
    model, cpu = generation(), torch.device("cpu")
    noted: dict[int, int] = {}
    start = time.perf_counter()
    for batch in range(1, ALL + 1):
        index = torch.arange(ROWS) + batch * ROWS
        with torch.no_grad():
            model.predict_step((index, index % CLASSES), batch)
        if batch in (WARM, ALL):
            noted[batch] = held(cpu) or 0
    lasted = (time.perf_counter() - start) / ALL
    grown = noted[ALL] - noted[WARM]
    facts: dict[str, object] = {
        f"resident after {batch:,} batches of guided sampling": f"{resident / 2**20:.1f} MiB"
        for batch, resident in noted.items()
    }
    verdict = "flat" if grown <= GROWTH else "MISSED"
    facts["growth"] = f"{grown / 2**20:+.2f} MiB, at most {GROWTH / 2**20:.0f}: {verdict}"
    facts["a batch"] = f"{lasted * 1e3:.1f} ms"
    return grown <= GROWTH, facts


def step() -> tuple[bool, dict[str, object]]:
    """Both peaks."""
    facts = dict[str, object]()
    for switch in ("false", "true"):
        configuration = read([str(CONFIGS / name) for name in STEP], [f"{ARGUMENT}={switch}"])
        kept = max(part.kept_bytes or 0 for part in cost_of(configuration).parts)
        found = measured(configuration, BATCH)
        peak, own = ((each or 0) / 2**20 for each in (found.peak_bytes, found.step_bytes))
        facts[f"robust step of {BATCH} images, use_checkpoint: {switch}"] = (
            f"peak {peak:.0f} MiB, of which the step {own:.0f} MiB, in {found.seconds:.2f} s; "
            f"{kept * BATCH / 2**20:.0f} MiB kept for the gradient, as counted"
        )
    return True, facts


BENCHMARKS = {"flat": flat, "step": step}


def main() -> int:
    """Exit code 1 where memory grew."""
    found = [BENCHMARKS[name]() for name in sys.argv[1:] or BENCHMARKS]
    facts = {about: value for _, each in found for about, value in each.items()}
    turns.record("memory", facts=facts)
    return int(not all(is_kept for is_kept, _ in found))


if __name__ == "__main__":
    sys.exit(main())
